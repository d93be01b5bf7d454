"""Compiles every Triton kernel ahead of time, without a GPU: registers, spills, shared memory, tensor cores.

    python -m ratrain.kernels.ahead [ARCH ...]

Exits with 1 where a configuration spills, or where a matrix product does not reach the tensor cores.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

OPS = ("ra_attention", "kv_prune", "linear_cross_entropy")
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}
# the instruction that a bf16 product must become
_MATRIX = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma", "gfx1100": "v_wmma"}


@dataclass(frozen=True)
class Compiled:
    """One kernel on one architecture; bytes of spilled registers, bytes of shared memory."""

    arch: str
    kernel: str
    tile: str
    registers: int
    spilled: int
    shared: int
    products: bool  # whether it multiplies matrices
    matrix: str  # the instruction by which it does; empty where there is none

    @property
    def sound(self) -> bool:
        return not self.spilled and bool(self.matrix) >= self.products


def compile_all(archs: list[str]) -> Iterator[Compiled]:
    """Every case of every op on each architecture."""
    for arch in archs:
        for op in OPS:
            module = importlib.import_module(f"{__package__}.{op}.kernel")
            for name, kernel, constants, tile in module.cases(arch):
                yield compile_one(arch, name, kernel, constants, tile, module.POINTERS)


def compile_one(arch: str, name: str, kernel, constants: dict, tile, pointers: dict[str, str]) -> Compiled:
    """With bf16 tensors, and pointers and strides that 16 divides, as a model's are."""
    types, attributes, constants = {}, {}, dict(constants)
    for at, argument in enumerate(kernel.arg_names):
        if argument in constants or argument.isupper():
            types[argument] = "constexpr"
        elif argument in pointers:
            types[argument] = {"input": "*bf16", "fp32": "*fp32"}.get(pointers[argument], f"*{pointers[argument]}")
        else:
            types[argument] = "fp32" if argument == "scale" else "i32"
        if types[argument] != "constexpr" and not argument.startswith(("n_", "scale")):
            attributes[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, types, constants, attributes)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    built = triton.compile(source, target=TARGETS[arch], options=options)
    registers, spilled, code = (_amd if arch.startswith("gfx") else _nvidia)(built.asm)
    matrix = _MATRIX[arch] if _MATRIX[arch] in code else ""
    shape = f"{tile.block} x {tile.step}, {tile.warps} warps, {tile.stages} stages"
    return Compiled(arch, name, shape, registers, spilled, built.metadata.shared, "PRECISION" in constants, matrix)


def _nvidia(asm) -> tuple[int, int, str]:
    """Registers and bytes of spills that cuobjdump, which comes with Triton, tells of the cubin; its SASS."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    # STACK is what a kernel keeps in local memory: nothing of ours does but spilled registers
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


def main(archs: list[str]) -> int:
    unknown = set(archs) - {*TARGETS, "--json"}
    if unknown:
        print(f"no such architecture: {', '.join(sorted(unknown))}; expected some of {', '.join(TARGETS)}")
        return 2
    as_json, found = "--json" in archs, []
    for one in compile_all([arch for arch in archs if arch != "--json"] or list(TARGETS)):
        found.append(one)
        if not as_json:
            mark = "" if one.sound else "  REFUSED"
            print(
                f"{one.arch:8} {one.kernel:40} {one.tile:32} {one.registers:4} registers {one.spilled:5} B spilled "
                f"{one.shared:7} B shared  {one.matrix}{mark}",
                flush=True,
            )
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    refused = [one for one in found if not one.sound]
    print(f"{len(found)} kernels, {len(refused)} refused", file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
