"""Finds lines of a defconfig without effect, by reading the file with other values in their place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ratrain.errors import Fault
from ratrain.legacy.readers.defconfig import Defconfig, Line
from ratrain.legacy.readers.matrix import OPTIMIZERS

_NUMBER = re.compile(r"-?\d+(\.\d*)?([eE][-+]?\d+)?", re.ASCII)
_EPOCHS = "below 100 it counts epochs, and GPT-2 trains none; from 100 up it counts steps"
_STEPS_DECIDE = "the ablation's steps determine the model"


def without_effect(file: Defconfig, comes_to: Callable[[Defconfig], Any]) -> list[Fault]:
    """Returns the lines whose value can change without changing `comes_to`, each with the likely reason."""
    whole = comes_to(file)
    return [
        Fault(file.where(name), name, _why(file, name))
        for name, line in file.lines.items()
        if all(comes_to(_with(file, other)) == whole for other in _others(line))
    ]


def _with(file: Defconfig, line: Line) -> Defconfig:
    return replace(file, lines={**file.lines, line.name: line})


def _others(line: Line) -> Iterator[Line]:
    """Yields the line with other values: smaller and larger numbers, the other of y and n, another word."""
    if line.value in ("y", "n"):
        values = ["n" if line.value == "y" else "y"]
    elif not _NUMBER.fullmatch(line.value):
        values = ["other"]
    elif line.value.isdecimal():
        values = [str(max(1, int(line.value) // 2)), str(2 * int(line.value) + 1)]
    else:
        values = [f"{float(line.value) * factor or factor:.6g}" for factor in (0.5, 0.9, 1.5)]
    for value in values:
        yield replace(line, value=value, taken=_taken(line, value))


def _taken(line: Line, value: str) -> str | None:
    """Returns `value` as Kconfig would read it in this line, None if it would drop it."""
    if line.taken is None or (line.taken.lstrip("-").isdecimal() and not value.isdecimal()):
        return None
    return value


def _why(file: Defconfig, name: str) -> str:
    """The likely reason why the line has no effect."""
    said = file.declared
    is_study = "y" in (said.get("RA_MLA_ABLATION_MODE"), said.get("GPT2_VANILLA_ABLATION_MODE"))
    if name == "CHECKPOINT_INTERVAL":
        return _EPOCHS
    if name.startswith("RA_MLA_ABLATION_"):
        return "RA_MLA_ABLATION_STEPS names the steps" if is_study else "RA_MLA_ABLATION_MODE is off"
    if name.startswith("RA_MLA_"):
        return _STEPS_DECIDE if is_study else "no mechanism that is on reads it"
    if name == "ADAMWPRUNE_AMSGRAD":
        return "only the base adamw has this choice, and the old trainer read every value as true"
    if name.startswith(("ADAMWPRUNE_", "GPT2_ADAMWPRUNE_")):
        return "no run here is pruned by AdamWPrune, or an earlier line sets the same"
    if name.partition("_")[0].lower() in (*OPTIMIZERS, "spam", "adv"):
        return "no run here is trained by that optimizer"
    return "any other value gives the same runs: other lines decide"
