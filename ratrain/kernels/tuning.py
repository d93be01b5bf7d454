"""Tile sizes of the kernels: one file of configurations per architecture, in `tuned/`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

TUNED = Path(__file__).parent / "tuned"
_FALLBACK = {"cuda": "sm_80", "hip": "gfx942"}  # for an architecture without a file of its own


@dataclass(frozen=True)
class Tile:
    """Tile of a program, which owns `block` tokens and iterates over others in steps of `step`."""

    block: int
    step: int
    warps: int
    stages: int

    def constants(self) -> dict[str, int]:
        """Returns the tile as constexpr parameters of a kernel."""
        return {"BLOCK": self.block, "STEP": self.step}

    def options(self) -> dict[str, int]:
        """Returns the tile as keyword arguments of a launch."""
        return {**self.constants(), "num_warps": self.warps, "num_stages": self.stages}


@dataclass(frozen=True)
class Case:
    """A kernel to compile ahead of time; its tile is that of (op, phase, size), if the architecture has one."""

    op: str
    phase: str
    size: str
    kernel: Any
    constants: dict[str, object]
    dtype: torch.dtype = torch.bfloat16
    variant: str = ""
    products: bool = True  # whether it multiplies matrices

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.op, self.phase, self.size, self.variant)))

    @property
    def key(self) -> tuple[str, str, str]:
        return self.op, self.phase, self.size


def architecture() -> str:
    """Returns the architecture of the current device: sm_90, gfx942, ...; without a GPU, as when interpreted, sm_80."""
    if not torch.cuda.is_available():
        return _FALLBACK["cuda"]
    if torch.version.hip:
        return torch.cuda.get_device_properties().gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def size_of(channels: int, dtype: torch.dtype) -> str:
    """The key of a tile: channels of a head; fp32, whose products use no tensor core, has tiles of its own."""
    return f"{channels} fp32" if dtype == torch.float32 else str(channels)


def config(op: str, phase: str, size: str, arch: str | None = None) -> Tile:
    """The tile of a kernel on an architecture (the current device's)."""
    if (tile := _trials.get((op, phase, size))) is not None:
        return tile
    return Tile(*tuned(arch or architecture())[op][phase][size])


@cache
def tuned(arch: str) -> dict[str, dict[str, dict[str, list[int]]]]:
    """Reads `tuned/<arch>.json`, or its fallback's: [block, step, warps, stages] by op, phase and size."""
    file = TUNED / f"{arch}.json"
    if not file.exists():
        file = TUNED / f"{_FALLBACK['hip' if arch.startswith('gfx') else 'cuda']}.json"
    return json.loads(file.read_text())


@cache
def serves(op: str, size: str, arch: str | None = None) -> bool:
    """Whether an architecture has tiles of this size for the op's kernels; a file omits sizes that would spill."""
    return any(size in sizes for sizes in tuned(arch or architecture())[op].values())


def write_tuned(arch: str, table: dict[str, dict[str, dict[str, list[int]]]]) -> None:
    """Writes `tuned/<arch>.json`, one line per phase."""
    ops = []
    for op, phases in table.items():
        lines = [f'  "{phase}": {json.dumps(sizes)}' for phase, sizes in phases.items()]
        ops.append(f' "{op}": {{\n' + ",\n".join(lines) + "\n }")
    (TUNED / f"{arch}.json").write_text("{\n" + ",\n".join(ops) + "\n}\n")
    tuned.cache_clear()
    serves.cache_clear()


_trials: dict[tuple[str, str, str], Tile] = {}


@contextmanager
def trial(key: tuple[str, str, str], tile: Tile) -> Iterator[None]:
    """Runs the kernel of `key` (op, phase, size) with `tile` inside the context."""
    _trials[key] = tile
    try:
        yield
    finally:
        del _trials[key]


def neighbours(tile: Tile) -> list[Tile]:
    """Returns the tiles to try in place of this one, the nearest first."""
    if not tile.step:  # a kernel without a loop over other tokens
        return [Tile(tile.block, 0, warps, tile.stages) for warps in (4, 8, 16) if warps != tile.warps]
    sizes, warps, stages = (16, 32, 64, 128), (4, 8), (1, 2, 3, 4)
    all_of = [Tile(b, s, w, n) for b in sizes for s in sizes if s <= b for w in warps for n in stages]
    return sorted((t for t in all_of if t != tile), key=lambda other: _distance(tile, other))


def _distance(one: Tile, other: Tile) -> tuple[float, int, int]:
    """Distance in halvings and doublings; ties go to the larger tile, then to the one with more stages."""
    sides = abs(math.log2(one.block / other.block)) + abs(math.log2(one.step / other.step))
    apart = sides + 0.5 * abs(math.log2(one.warps / other.warps)) + 0.5 * abs(one.stages - other.stages)
    return apart, -other.block * other.step, -other.stages
