"""Lines of a defconfig that could hold any other value: found by reading the file with other values in their place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ratrain.errors import Fault
from ratrain.legacy.readers.defconfig import Defconfig, Line
from ratrain.legacy.readers.matrix import OPTIMIZERS

_NUMBER = re.compile(r"-?\d+(\.\d*)?([eE][-+]?\d+)?", re.ASCII)
_EPOCHS = "below 100 it counts epochs, of which GPT-2 trains none; from 100 up it is read as steps"
_STEPS_DECIDE = "the ablation's steps say what the model is"


def without_effect(file: Defconfig, comes_to: Callable[[Defconfig], Any]) -> list[Fault]:
    """The lines without which, and with any other value, `comes_to` is the same, each with the likely reason."""
    whole = comes_to(file)
    return [
        Fault(file.where(name), name, _why(file, name))
        for name, line in file.lines.items()
        if all(comes_to(_with(file, other)) == whole for other in _others(line))
    ]


def _with(file: Defconfig, line: Line) -> Defconfig:
    return replace(file, lines={**file.lines, line.name: line})


def _others(line: Line) -> Iterator[Line]:
    """The line with other values: smaller and larger numbers, the other of y and n, another word."""
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
    """`value` as Kconfig takes it in place of what it took: a word is no number."""
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
        return _STEPS_DECIDE if is_study else "nothing that is switched on here reads it"
    if name == "ADAMWPRUNE_AMSGRAD":
        return "the base adamw alone has it as a choice, and the old trainer took every value for true"
    if name.startswith(("ADAMWPRUNE_", "GPT2_ADAMWPRUNE_")):
        return "no run here is pruned by AdamWPrune, or a line that comes before it says the same"
    if name.partition("_")[0].lower() in (*OPTIMIZERS, "spam", "adv"):
        return "no run here is trained by that optimizer"
    return "any other value comes to the same runs: other lines decide"
