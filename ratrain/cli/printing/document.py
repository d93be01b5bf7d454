"""The answer to `--json`: one document of strict JSON on stdout."""

from __future__ import annotations

import json
from typing import Any

from ratrain.strict_json import strict_json


def print_document(value: Any) -> None:
    """Prints `value` as one JSON document; infinite floats and NaN become null."""
    print(json.dumps(strict_json(value), indent=1, allow_nan=False))


def print_line(value: Any) -> None:
    """Prints `value` as JSON in one line, which may be one of many; infinite floats and NaN become null."""
    print(json.dumps(strict_json(value), allow_nan=False), flush=True)
