"""The train step on a GPU that is not there: what no step may do, and no more launches or bytes than were recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from bench.rehearsal import bounds, guard

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(guard.compiler() is None, reason="needs a C++ compiler for the guard that stands in for CUDA"),
    pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux"),
]

# what compiles to different graphs; `make rehearse` goes through all variants
VARIANTS = ("v0", "v9", "v10", "v14", "v15", "v19", "tied_ra", "output_gate", "modern")


def rehearse(*words):
    """Exit status, and a row a case."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "bench.rehearsal", "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert rows, done.stderr[-2000:]
    return done.returncode, rows


@pytest.fixture(scope="module")
def rows():
    return {row["case"].split()[0]: row for row in rehearse(*VARIANTS)[1]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_neither_breaks_nor_waits_nor_costs_more_than_it_did(rows, variant):
    assert rows[variant]["faults"] == []
    assert rows[variant]["graphs"] >= 2  # a block and the head


def test_the_bounds_are_those_of_the_tested_torch():
    assert json.loads(bounds.FILE.read_text())["torch"] == "2.13.0"
    if version("torch").startswith("2.13.0"):
        assert all(f"{name} bf16 block cudnn x16" in bounds.read() for name in VARIANTS)


def test_one_graph_of_the_model_moves_fewer_bytes_than_blocks(rows):
    _, (whole,) = rehearse("v0", "--scope", "model")
    assert whole["faults"] == []
    assert whole["graphs"] == 1
    assert whole["bytes"] < rows["v0"]["bytes"]


PLANT = """
from torch import Tensor, nn

from ratrain.registry import Patch, register


class Planted(nn.Module):
    def forward(self, y: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return {result}


@register("planted")
class Plant(Patch):
    target: str = "blocks.*.attn.blend"

    def build(self, old, spec):
        return Planted()
"""


def planted(folder, result):
    """A row of V0 with `result` in place of what attention gives."""
    (folder / "patches").mkdir()
    (folder / "patches" / "planted.py").write_text(PLANT.format(result=result))
    manifest = folder / "planted.toml"
    manifest.write_text(f'id = "planted"\nextends = "{ROOT}/ratrain/manifests/unified_ra_v0.toml"\n[patch.planted]\n')
    return rehearse(str(manifest))


def test_a_step_that_would_wait_for_the_device_is_refused(tmp_path):
    status, (row,) = planted(tmp_path, "(2 * y if y.sum() > 0 else y)")
    assert status == 1
    assert any("Unsupported" in fault or "waits" in fault for fault in row["faults"])


def test_memory_that_a_mechanism_moves_is_counted(tmp_path, rows):
    status, (row,) = planted(tmp_path, "y + y.flip(2).cumsum(2).flip(2)")
    assert status == 0  # no bound of its own
    one_pass = 12 * 16 * 1024 * 768 * 2  # y of all layers, in bf16
    assert row["bytes"] > rows["v0"]["bytes"] + 2 * one_pass


@pytest.mark.parametrize(("launches", "size", "count"), [(10, 1000, 0), (11, 1000, 1), (10, 1006, 1), (9, 900, 0)])
def test_more_launches_or_bytes_than_recorded_are_faults(launches, size, count):
    step = SimpleNamespace(case="v0", launches=launches, bytes=size)
    found = bounds.exceeded(cast("Any", step), {"v0": {"launches": 10, "bytes": 1000}})
    assert len(found) == count
    assert all("when they were recorded" in fault for fault in found)


@pytest.mark.parametrize("branch", ["device", "gpu_check", "a run of v0,"])
def test_the_other_branches_of_a_gpu_come_to_their_end(branch):
    if branch == "gpu_check" and torch.__version__ < "2.12":
        pytest.skip("the fake of addmm with out_dtype fails in torch 2.11")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "bench.rehearsal", "--rest", branch]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert done.stdout.count("ok") >= 1
