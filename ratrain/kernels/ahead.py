"""Compiles every Triton kernel ahead of time, without a GPU: registers, spills, shared memory, tensor cores.

    python -m ratrain.kernels.ahead [ARCH ...] [--repair [--refused FILE]] [--markdown | --json]

Exits with 1 if a configuration spills registers, needs more shared memory than the architecture has, or has a 16-bit
matrix product that does not use the tensor cores, or does not compile. --repair writes the nearest tile without these
faults into `tuned/`. Versions of Triton allocate registers differently: run --repair with one version and then the
other, and the same --refused FILE, until neither changes a tile. The file keeps the tiles that either version refused,
so that neither restores a tile that the other replaced.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import IO

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ratrain.kernels.tuning import Case, Tile, config, neighbours, serves, tuned, write_tuned

OPS = ("ra_attention", "kv_prune", "linear_cross_entropy", "adamw", "bias_gradient")
_FLOATS = (
    "scale",
    "softness",
    "z_loss",
    "beta1",
    "rest1",
    "beta2",
    "rest2",
    "eps",
    "weight_decay",
)  # other numbers are ints


@dataclass(frozen=True)
class Target:
    """An architecture: the instruction that a bf16 product must become, and bytes of shared memory for a program."""

    gpu: GPUTarget
    matrix: str
    shared: int


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), "HMMA", 163 << 10),
    "sm_90": Target(GPUTarget("cuda", 90, 32), "HGMMA", 227 << 10),
    "sm_100": Target(GPUTarget("cuda", 100, 32), "UTCHMMA", 227 << 10),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), "v_mfma", 64 << 10),
    "gfx1100": Target(GPUTarget("hip", "gfx1100", 32), "v_wmma", 64 << 10),
}


@dataclass(frozen=True)
class Compiled:
    """One kernel on one architecture; bytes of spilled registers, bytes of shared memory."""

    arch: str
    kernel: str
    tile: str
    registers: int
    spilled: int
    shared: int
    matrix: str  # the instruction that multiplies matrices; empty if there is none
    fault: str  # empty if the configuration may be used

    def __str__(self) -> str:
        return (
            f"{self.arch:8} {self.kernel:52} {self.tile:30} {self.registers:4} registers {self.spilled:5} B spilled "
            f"{self.shared:7} B shared  {self.matrix:8} {self.fault}"
        ).rstrip()


def all_cases() -> list[Case]:
    """Returns the cases of every op."""
    modules = [importlib.import_module(f"{__package__}.{op}.kernel") for op in OPS]
    return [case for module in modules for case in module.cases()]


def compile_one(arch: str, case: Case, tile: Tile) -> Compiled:
    """Compiles one case, with pointers and strides divisible by 16, as in a model."""
    target = TARGETS[arch]
    source = _source(case, tile)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    shape = f"{tile.block} x {tile.step}, {tile.warps} warps, {tile.stages} stages"
    with tempfile.TemporaryFile() as said:
        try:
            with _stderr_to(said):
                built = triton.compile(source, target=target.gpu, options=options)
        except Exception as error:  # the compiler's own are of many kinds
            said.seek(0)
            told = re.search(rb"error: (.*)", said.read())
            reason = told[1].decode() if told else f"{type(error).__name__}: {error}".splitlines()[0]
            return Compiled(arch, case.name, shape, 0, 0, 0, "", f"does not compile: {reason}")
    registers, spilled, code = (_amd if arch.startswith("gfx") else _nvidia)(built.asm)
    matrix = target.matrix if target.matrix in code else ""
    multiplies = case.products and case.dtype != torch.float32
    faults = {
        "spills registers": spilled > 0,
        f"asks for more than {target.shared} B of shared memory": built.metadata.shared > target.shared,
        f"has no {target.matrix}": multiplies and not matrix,
    }
    fault = ", ".join(text for text, there in faults.items() if there)
    return Compiled(arch, case.name, shape, registers, spilled, built.metadata.shared, matrix, fault)


@contextmanager
def _stderr_to(file: IO[bytes]) -> Iterator[None]:
    """Redirects stderr to `file`: on failure the compiler writes whole programs to it, from C++."""
    sys.stderr.flush()
    before = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _source(case: Case, tile: Tile) -> ASTSource:
    pointers = importlib.import_module(f"{__package__}.{case.op}.kernel").POINTERS
    names = case.kernel.arg_names
    constants = {**case.constants, **{key: value for key, value in tile.constants().items() if key in names}}
    types, attributes = {}, {}
    tensor = "*fp32" if case.dtype == torch.float32 else "*bf16"
    for at, name in enumerate(names):
        if name in constants:
            types[name] = "constexpr"
        elif name in pointers:
            types[name] = {"input": tensor, "fp32": "*fp32"}.get(pointers[name], f"*{pointers[name]}")
        else:
            types[name] = "fp32" if name in _FLOATS else "i32"
        if types[name] not in ("constexpr", "fp32") and not name.startswith("n_"):
            attributes[(at,)] = [["tt.divisibility", 16]]
    return ASTSource(case.kernel, types, constants, attributes)


def repair(arch: str, cases: Iterable[Case], refused: dict[str, list[list[int]]]) -> Iterator[str]:
    """Replaces every tile with a refused case by the nearest tile without one; yields a line per change.

    Skips the tiles in `refused`, by architecture and key, and adds the tiles refused now.
    """
    table = tuned(arch)
    for key, group in groupby(sorted(cases, key=lambda case: case.key), key=lambda case: case.key):
        op, phase, size = key
        same, barred = list(group), refused.setdefault(" ".join((arch, *key)), [])
        old = config(*key, arch)
        for new in [old, *neighbours(old)]:
            numbers = [new.block, new.step, new.warps, new.stages]
            if numbers in barred:
                continue
            if _serves(arch, same, new):
                break
            barred.append(numbers)
        else:
            yield f"{arch} {' '.join(key)}: no tile serves"
            continue
        if new != old:
            table[op][phase][size] = numbers
            write_tuned(arch, table)
            yield f"{arch} {' '.join(key)}: {old} -> {new}"


def _serves(arch: str, cases: Iterable[Case], tile: Tile) -> bool:
    return not any(compile_one(arch, case, tile).fault for case in cases)


def _nvidia(asm) -> tuple[int, int, str]:
    """Returns registers and spilled bytes of the cubin, from the cuobjdump that comes with Triton, and its SASS."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    # STACK counts local memory, in which these kernels keep spilled registers only
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"], code


def _amd(asm) -> tuple[int, int, str]:
    text = asm["amdgcn"]
    numbers = {key: int(value) for key, value in re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", text)}
    return numbers["vgpr_count"], 4 * numbers["vgpr_spill_count"], text


def _run(tool: str, *arguments: str) -> str:
    from triton.backends.nvidia import compiler

    path = Path(compiler.__file__).parent / "bin" / tool
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def _markdown(found: Iterable[Compiled]) -> str:
    """Registers, KiB of shared memory and faults, by kernel and architecture; - for an architecture without a tile."""
    cells: dict[str, dict[str, str]] = {}
    for one in found:
        said = f"{one.registers}, {one.shared / 1024:.0f} KiB" + (f", {one.fault}" if one.fault else "")
        cells.setdefault(one.kernel, {})[one.arch] = said
    archs = list(dict.fromkeys(arch for row in cells.values() for arch in row))
    lines = [["kernel", *archs], ["---"] * (1 + len(archs))]
    lines += [[kernel, *(row.get(arch, "-") for arch in archs)] for kernel, row in cells.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ratrain.kernels.ahead", description="Compiles every kernel without a GPU."
    )
    parser.add_argument("arch", nargs="*", help=f"some of {', '.join(TARGETS)} (all)")
    parser.add_argument("--repair", action="store_true", help="replace the tiles that are refused")
    parser.add_argument("--refused", type=Path, help="JSON: tiles that --repair passes over; it adds those it refuses")
    parser.add_argument("--markdown", action="store_true", help="a table, a row a kernel, in place of a line a kernel")
    parser.add_argument("--json", action="store_true", help="one JSON document in place of a line a kernel")
    args = parser.parse_args()
    if unknown := [arch for arch in args.arch if arch not in TARGETS]:
        parser.error(f"no such architecture: {', '.join(unknown)}; expected some of {', '.join(TARGETS)}")
    cases, found = all_cases(), []
    refused = json.loads(args.refused.read_text()) if args.refused and args.refused.exists() else {}
    for arch in args.arch or list(TARGETS):
        served = [case for case in cases if serves(case.op, case.size, arch)]
        for line in repair(arch, served, refused) if args.repair else ():
            print(line, flush=True)
        if args.refused and args.repair:
            args.refused.write_text(json.dumps({key: tiles for key, tiles in refused.items() if tiles}, indent=1))
        for case in served:
            found.append(compile_one(arch, case, config(*case.key, arch)))
            if not (args.json or args.markdown):
                print(found[-1], flush=True)
    if args.json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    if args.markdown:
        print(_markdown(found))
    faults = sum(bool(one.fault) for one in found)
    print(f"{len(found)} kernels, {faults} refused", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
