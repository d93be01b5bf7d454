"""A real Ray cluster of two nodes on this machine: one node is killed, and the driver once.

Skipped where Ray is not installed (pip install 'ratrain[ray]').
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from ratrain.errors import Exit
from tests.cluster.studies import ADAPTIVE, FIXED, results_of, words_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'ratrain[ray]'"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster(own_cache):
    """Its address, and a function that adds and kills its second node."""
    program = Path(__file__).with_name("two_nodes.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([sys.executable, program], text=True, **pipes) as keeper:
            assert keeper.stdin
            assert keeper.stdout
            address = keeper.stdout.readline().strip()

            def tell(word):
                keeper.stdin.write(f"{word}\n")
                keeper.stdin.flush()
                assert keeper.stdout.readline() == f"{word}\n"

            yield address, tell
            keeper.stdin.close()
            keeper.wait()


def driver(words, address) -> subprocess.Popen:
    command = [sys.executable, "-m", "ratrain", *map(str, words), "--pool", "ray", "--address", address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(condition, *, seconds: float = 120.0) -> None:
    tick = threading.Event()
    for _ in range(int(seconds * 5)):
        if condition():
            return
        tick.wait(0.2)
    raise AssertionError("it did not come to that")


@pytest.mark.parametrize("text", [FIXED, ADAPTIVE])
def test_a_lost_node_and_a_killed_driver_change_nothing(cluster, ratrain, tmp_path, monkeypatch, text):
    address, tell = cluster
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.toml").write_text(text)
    many, one = (words_of(Path("study.toml"), Path(name)) for name in ("many", "one"))
    begun = driver(many, address)
    until(lambda: len(list(Path("many").glob("*/s*/summary.json"))) >= 1)
    begun.send_signal(signal.SIGKILL)
    begun.communicate()
    again = driver(many, address)
    until(lambda: len(list(Path("many").glob("*/s*/summary.json"))) >= 2)
    tell("add")
    until(lambda: len(list(Path("many").glob("*/s*/summary.json"))) >= 4)
    tell("kill")
    said, _ = again.communicate(timeout=400)
    assert again.returncode == 0, said
    code, _, err = ratrain(*one, "--jobs", 2)
    assert code == 0, err
    assert results_of(Path("many")) == results_of(Path("one"))
    ends = [file.read_text().count('"event": "RunEnded"') for file in Path("many").glob("*/s*/events.jsonl")]
    assert set(ends) == {1}


def test_an_interrupt_lets_every_run_save(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.toml").write_text(FIXED.replace("steps = 6", "steps = 5000"))
    begun = driver(words_of(Path("study.toml"), Path("runs")), cluster[0])
    until(lambda: len(list(Path("runs").glob("*/s*/events.jsonl"))) >= 1)
    os.kill(begun.pid, signal.SIGINT)
    said, _ = begun.communicate(timeout=120)
    assert begun.returncode == Exit.PREEMPTED, said
    states = [json.loads(file.read_text()) for file in Path("runs").glob("*/s*/state.json")]
    assert {state["status"] for state in states} == {"preempted"}


def test_an_address_that_does_not_answer_is_told(ratrain, tmp_path):
    (tmp_path / "study.toml").write_text(FIXED)
    words = words_of(tmp_path / "study.toml", tmp_path / "runs")
    done = driver(words, "127.0.0.1:1")
    said, _ = done.communicate(timeout=200)
    assert done.returncode == Exit.UNAVAILABLE, said
    assert "--address 127.0.0.1:1: no cluster answers" in said
