"""Rewrites variants.json: what every shipped manifest means at its default scale. Run by `make golden`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ratrain.config.find import shipped
from ratrain.config.read import read_source
from ratrain.config.resolve import resolve
from ratrain.registry import optim_kinds, patch_kinds
from ratrain.run.check import Checked, check

FILE = Path(__file__).parent / "variants.json"
_KEPT = ("recipe", "parameters", "train_flops_per_token", "kv_bytes_per_token", "sites")


def checked() -> list[Checked]:
    """Every shipped variant, built on the meta device at the scale it names itself."""
    sources = [source for file in shipped() if "id" in (source := read_source(file)).tree]
    kinds = {"patches": patch_kinds(), "optimizers": optim_kinds()}
    return [check(resolve(source, **kinds)) for source in sources]


def golden(rows: list[Checked]) -> dict[str, dict[str, Any]]:
    """What is kept of each variant, by id."""
    return {row.id: {name: row.record()[name] for name in _KEPT} for row in rows}


if __name__ == "__main__":
    FILE.write_text(json.dumps(golden(checked()), indent=1) + "\n")
