"""Figures on disk as they come: an error, the end of the time or a kill cost nothing that was known before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu.first import CALLS, LIMIT
from bench.gpu.ledger import Ledger

ROOT = Path(__file__).resolve().parents[3]


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def failing():
    yield {"ms": 1.0}
    raise RuntimeError("out of memory\nand much more")


def test_a_part_that_fails_costs_only_itself(tmp_path):
    ledger = Ledger(tmp_path / "first.jsonl")
    ledger.run({"a": failing, "b": lambda: iter([{"ms": 2.0}])}, {"a": 1.0, "b": 1.0})
    assert ledger.rows["a"] == [{"ms": 1.0}, {"why": "RuntimeError: out of memory"}]
    assert ledger.rows["b"] == [{"ms": 2.0}]
    assert [row["part"] for row in lines(ledger.file)] == ["a", "a", "took", "b", "took"]


def test_a_part_that_cannot_begin_is_a_row(tmp_path):
    def broken():
        raise ImportError("no such module")

    ledger = Ledger(tmp_path / "first.jsonl")
    ledger.run({"a": broken}, {})
    assert ledger.rows["a"] == [{"why": "ImportError: no such module"}]


def test_nothing_begins_when_the_time_is_over_and_what_runs_ends_with_its_row(tmp_path):
    ledger = Ledger(tmp_path / "first.jsonl", until=0.0)
    assert "not begun" in ledger.keep("a", iter([{"ms": 1.0}]))[0]["why"]

    def slow():
        ledger.until = float("inf")
        yield {"ms": 1.0}
        ledger.until = 0.0
        yield {"ms": 2.0}
        yield {"ms": 3.0}

    ledger.until = float("inf")
    rows = ledger.keep("b", slow())
    assert [row.get("ms") for row in rows] == [1.0, 2.0, None]
    assert "ended early" in rows[-1]["why"]


def test_a_killed_process_leaves_what_it_knew(tmp_path):
    file = tmp_path / "first.jsonl"
    code = (
        f"import os; from pathlib import Path; from bench.gpu.ledger import Ledger\n"
        f"ledger = Ledger(Path({str(file)!r})); ledger.tell('a', ms=1.0); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, cwd=ROOT).returncode == -9
    assert [row["ms"] for row in lines(file)] == [1.0]


@pytest.mark.parametrize("call", [1, 2])
def test_what_a_call_is_expected_to_take_fits_its_limit(call):
    assert sum(seconds for seconds, _ in CALLS[call].values()) <= LIMIT[call]
    assert all(rehearsed > 0 for _, rehearsed in CALLS[call].values())


@pytest.mark.slow
def test_the_first_minutes_on_a_gpu_go_through_on_a_cpu(tmp_path):
    parts = "env,peaks,products,full,loss,steps_16,profile,kernels,decode,train,whole"
    command = [sys.executable, "-W", "ignore", "-m", "bench.gpu.first", "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--parts", parts], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = lines(tmp_path / "first.jsonl")
    assert {row["of"] for row in rows if row["part"] == "took"} == set(parts.split(","))
    assert not [row for row in rows if row.get("why")]
    assert (tmp_path / "profile.txt").read_text()


def test_a_part_that_does_not_exist_is_named():
    command = [sys.executable, "-m", "bench.gpu.first", "--rehearse", "--parts", "env,speed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "--parts speed: expected some of env" in done.stderr


def test_a_module_that_cannot_be_imported_costs_only_its_own_parts(tmp_path):
    code = "import sys; sys.modules['bench.gpu.training'] = None; "
    code += "from bench.gpu import first; sys.exit(first.main())"
    words = ["--rehearse", "--out", str(tmp_path), "--parts", "env,train"]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *words], capture_output=True, check=False, cwd=ROOT)
    rows = lines(tmp_path / "first.jsonl")
    assert [row["part"] for row in rows if "bench.gpu.training" in str(row.get("why"))] == ["train"]
    assert [row for row in rows if row["part"] == "env"]
