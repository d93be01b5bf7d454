"""Which tile sizes a kernel runs with: one file of configurations per architecture, in `tuned/`."""

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
_FALLBACK = {"cuda": "sm_80", "hip": "gfx942"}  # what an architecture without a file of its own takes


@dataclass(frozen=True)
class Tile:
    """A program owns `block` tokens and walks over others in steps of `step`."""

    block: int
    step: int
    warps: int
    stages: int

    def constants(self) -> dict[str, int]:
        """As a kernel's parameters."""
        return {"BLOCK": self.block, "STEP": self.step}

    def options(self) -> dict[str, int]:
        """As a launch takes them."""
        return {**self.constants(), "num_warps": self.warps, "num_stages": self.stages}


@dataclass(frozen=True)
class Case:
    """A kernel to compile ahead of time; its tile is that of (op, phase, size), where the architecture has one."""

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
    """Of the current device: sm_90, gfx942, ...; sm_80 where there is none, as under the interpreter."""
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
    """What `tuned/<arch>.json` holds, by op, phase and size: [block, step, warps, stages]."""
    file = TUNED / f"{arch}.json"
    if not file.exists():
        file = TUNED / f"{_FALLBACK['hip' if arch.startswith('gfx') else 'cuda']}.json"
    return json.loads(file.read_text())


@cache
def serves(op: str, size: str, arch: str | None = None) -> bool:
    """Whether an architecture has tiles of this size for the op's kernels; a file leaves out what would spill."""
    return any(size in sizes for sizes in tuned(arch or architecture())[op].values())


def write_tuned(arch: str, table: dict[str, dict[str, dict[str, list[int]]]]) -> None:
    """Writes `tuned/<arch>.json`, a line a phase."""
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
    """Has the kernel of `key` (op, phase, size) run with `tile` for now."""
    _trials[key] = tile
    try:
        yield
    finally:
        del _trials[key]


def neighbours(tile: Tile) -> list[Tile]:
    """Tiles to try in place of this one, those most like it first."""
    if not tile.step:  # a kernel that walks over nothing
        return [Tile(tile.block, 0, warps, tile.stages) for warps in (4, 8, 16) if warps != tile.warps]
    sizes, warps, stages = (16, 32, 64, 128), (4, 8), (1, 2, 3, 4)
    all_of = [Tile(b, s, w, n) for b in sizes for s in sizes if s <= b for w in warps for n in stages]
    return sorted((t for t in all_of if t != tile), key=lambda other: _distance(tile, other))


def _distance(one: Tile, other: Tile) -> tuple[float, int, int]:
    """In halvings and doublings; of equally near ones the larger tile, then the one of more stages."""
    sides = abs(math.log2(one.block / other.block)) + abs(math.log2(one.step / other.step))
    apart = sides + 0.5 * abs(math.log2(one.warps / other.warps)) + 0.5 * abs(one.stages - other.stages)
    return apart, -other.block * other.step, -other.stages
