"""Compile time of a variant, cold and warm: a cold time is measured once per machine, and kept beside the warm one."""

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
    """Takes the first three steps of an uncompiled step. Returns the graphs, the recompiles after the first step, and
    the seconds of the first step, `cold s` and `warm s`, each from its latest measurement on this machine."""
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
