"""Saves and restores every random generator that a step may use, as tensors and plain values."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def rng_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the states of torch's, each GPU's, NumPy's and Python's generators."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    return tensors, {"python": [version, list(words), gauss], "numpy": numpy}


def restore_rng(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Restores the states from `rng_state`; skips generators of devices that are gone."""
    torch.set_rng_state(tensors["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda{i}"], i)
    version, words, gauss = plain["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = plain["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
