"""`make gpu-check` goes through on a CPU, kernels by the interpreter: on a lent GPU nobody has time to debug it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def parts(file):
    """Rows by part, from the lines of a ledger."""
    found = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["part"], []).append(row)
    return found


def run(*words):
    command = [sys.executable, "-m", "bench.gpu.check", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.interpreter
def test_the_kernels_part_checks_races_and_times(tmp_path):
    done = run("--rehearse", "--part", "kernels", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("*.jsonl")
    found = parts(file)
    assert all(row["ok"] for row in found["checks"])
    assert {"ra_attention D=64 tied bias blend", "decode D=128 kv"} <= {row["check"] for row in found["checks"]}
    assert not [row for row in (*found["races"], *found["kernels"]) if "why" in row]
    assert "| folded forward |" in file.with_suffix(".md").read_text()


def test_the_steps_part_compares_with_v0_in_the_same_rounds(tmp_path):
    done = run("--rehearse", "--part", "steps", "--out", tmp_path, "--only", "unified_ra_v9")
    assert done.returncode == 0, done.stderr
    rows = parts(next(tmp_path.glob("*.jsonl")))["steps"]
    assert [row["variant"] for row in rows] == ["unified_ra_v0 again", "unified_ra_v9"]
    assert all(row["tokens_per_s"] > 0 for row in rows)


def test_a_variant_that_fails_costs_only_itself(tmp_path):
    done = run("--rehearse", "--part", "steps", "--out", tmp_path, "--only", "no_such_manifest,unified_ra_v9")
    assert done.returncode == 0, done.stderr
    rows = parts(next(tmp_path.glob("*.jsonl")))["steps"]
    assert {row["variant"] for row in rows if "ms" in row} == {"unified_ra_v0 again", "unified_ra_v9"}
    assert [row["variant"] for row in rows if "why" in row] == ["no_such_manifest"]


def test_without_a_gpu_it_says_so(tmp_path):
    done = run("--out", tmp_path)
    assert done.returncode == 69
    assert "no GPU" in done.stderr
    assert not list(tmp_path.iterdir())
