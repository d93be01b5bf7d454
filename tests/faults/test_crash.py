"""Killed anywhere, a run ends with the bits of the unbroken one. FAULTS=long: the counts of docs/reliability.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LONG = os.environ.get("FAULTS") == "long"


def crashes(*words):
    """What crash.py finds; nothing must be wrong."""
    program = Path(__file__).with_name("crash.py")
    done = subprocess.run([sys.executable, str(program), *map(str, words)], capture_output=True, text=True)
    assert done.stdout.startswith(" "), done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(done.stdout)
    assert found["wrong"] == []
    return found


@pytest.mark.slow
def test_killed_at_points_all_over_a_run_it_ends_as_if_it_had_not_been():
    found = crashes(*("--points", 1000, "--steps", 40) if LONG else ("--points", 60, "--steps", 10))
    assert found["runs"] == (1000 if LONG else 60)
    assert sum("checkpoint" in label for label in found["killed_at"]) >= 5  # in many phases of the writer


@pytest.mark.slow
def test_the_same_with_checkpoints_written_beside_the_steps():
    found = crashes("--asynchronous", *(("--points", 500, "--steps", 40) if LONG else ("--points", 40, "--steps", 10)))
    assert (found["runs"], found["asynchronous"]) == (500 if LONG else 40, True)
    assert sum(count for label, count in found["killed_at"].items() if "checkpoint" in label) >= 5


@pytest.mark.slow
def test_the_same_where_two_processes_divide_the_model_and_one_is_killed():
    words = ("--processes", 2, "--asynchronous", "--jobs", 1)
    found = crashes(*words, *(("--points", 500, "--steps", 40) if LONG else ("--points", 12, "--steps", 6)))
    assert (found["runs"], found["processes"]) == (500 if LONG else 12, 2)
    assert sum(count for label, count in found["killed_at"].items() if "checkpoint" in label) >= 2


@pytest.mark.slow
def test_the_same_compiled_on_two_threads():
    points = 20 if LONG else 4
    found = crashes("--points", points, "--steps", 8, "--compiled", "--threads", 2, "--jobs", 1)
    assert (found["runs"], found["compiled"], found["threads"]) == (points, True, 2)
