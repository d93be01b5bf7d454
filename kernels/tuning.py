"""Which tile sizes a kernel runs with: one file of measured configurations per architecture, in `tuned/`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

TUNED = Path(__file__).parent / "tuned"
_FALLBACK = {"cuda": "sm_80", "hip": "gfx942"}  # what an architecture without a file of its own takes


@dataclass(frozen=True)
class Tile:
    """A program owns `block` tokens and walks over others in steps of `step`."""

    block: int
    step: int
    warps: int
    stages: int

    def options(self) -> dict[str, int]:
        """As a launch takes them."""
        return {"BLOCK": self.block, "STEP": self.step, "num_warps": self.warps, "num_stages": self.stages}


def architecture() -> str:
    """Of the current device: sm_90, gfx942, ...; sm_80 where there is none, as under the interpreter."""
    if not torch.cuda.is_available():
        return _FALLBACK["cuda"]
    if torch.version.hip:
        return torch.cuda.get_device_properties().gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def config(op: str, phase: str, head_dim: int, arch: str | None = None) -> Tile:
    """The tile of a kernel on an architecture (the current device's), for the head dimension or the next larger."""
    arch = arch or architecture()
    kind = "hip" if arch.startswith("gfx") else "cuda"
    table = tuned(arch if (TUNED / f"{arch}.json").exists() else _FALLBACK[kind])[op][phase]
    sizes = sorted(map(int, table))
    return Tile(*table[str(next((size for size in sizes if size >= head_dim), sizes[-1]))])


@cache
def tuned(arch: str) -> dict[str, dict[str, dict[str, list[int]]]]:
    """What `tuned/<arch>.json` holds: by op, phase and head dimension [block, step, warps, stages]."""
    return json.loads((TUNED / f"{arch}.json").read_text())
