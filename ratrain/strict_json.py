"""JSON that every parser reads: NaN and infinity, which JSON lacks, become null."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any


def strict_json(value: Any) -> Any:
    """Converts a value to strict JSON: tuples to lists, paths to text, infinite floats and NaN to null."""
    if isinstance(value, dict):
        return {key: strict_json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict_json(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
