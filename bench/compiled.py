"""How long a variant took to compile, cold and warm: the one is seen once per machine, and kept for the other."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch

from ratrain.config.identity import recipe_hash
from ratrain.config.schema import Manifest
from ratrain.data.cache import cache_folder, keep
from ratrain.machine.compile import GraphCounter


def first_steps(name: str, manifest: Manifest, device: str, step: Callable[[], object]) -> dict[str, Any]:
    """Takes the first three steps of what is not compiled yet: the graphs, those after the first step, and the seconds
    to the end of that one, `cold s` and `warm s`, as they were last seen on this machine."""
    graphs, began = GraphCounter(), time.perf_counter()
    step()
    seconds = round(time.perf_counter() - began, 1)
    graphs.expect(graphs.graphs)
    step()
    step()
    file = cache_folder() / "compile-seconds.json"
    key = f"{name} {recipe_hash(manifest)} {device} torch {torch.__version__}"
    try:
        known = json.loads(file.read_bytes())
    except (OSError, ValueError):
        known = {}
    known[key] = {**known.get(key, {}), "warm s" if graphs.cached else "cold s": seconds}
    keep(file, [json.dumps(known, indent=1).encode()])
    return {"graphs": graphs.graphs, "recompiles": graphs.recompiles, **known[key]}
