"""How OpenMP's threads wait is settled before torch is loaded, wherever a run trains, and changes no bit of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ratrain.waiting import is_busy, settle

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
CPUS = os.cpu_count() or 1


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize(
    ("busy", "set_to"),
    [(True, {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}), (False, {"GOMP_SPINCOUNT": "10000"})],
)
def test_threads_spin_for_a_shorter_time_on_a_busy_machine(busy, set_to):
    environment = {}
    settle(environment, busy=busy)
    assert environment == set_to


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_user_says_stands(name):
    environment = {name: "x"}
    settle(environment, busy=True)
    assert environment == {name: "x"}


def test_where_torch_is_loaded_it_is_too_late():
    environment = {}
    settle(environment, busy=True)
    assert not environment


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux tells which CPUs a process may use")
@pytest.mark.parametrize(
    ("text", "busy"),
    [
        ("9.00 9.00 9.00 1/900 77\n", False),  # what ran before has ended
        (f"0.00 0.00 0.00 {CPUS + 1}/900 77\n", True),
        ("", False),
        ("odd", False),
        ("0.00 0.00 0.00 0/0 1\n", False),  # a system that counts nothing
    ],
)
def test_a_machine_is_busy_while_others_run_on_it(tmp_path, text, busy):
    (tmp_path / "loadavg").write_text(text)
    assert is_busy(tmp_path / "loadavg") is busy
    assert not is_busy(tmp_path / "none")


# runs of their own: torch reads the environment once


def ratrain(folder, *argv, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-m", "ratrain", *argv, "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**clean, **environment})
    assert done.returncode == 0, done.stderr


SHORT = [*("--set", "compile.scope=off"), *("--set", "train.budget={steps=2}"), *("--set", "eval.windows=2")]
STUDY = 'id = "waits"\nbase = "v0"\narms = ["v9"]\ncontrols = false\nseed = { init = [1] }\n'


@pytest.mark.slow
@pytest.mark.parametrize("how", [["v0"], ["v0", "--devices", "2"], ["--ablate", "study.toml", "--jobs", "1"]])
def test_every_way_to_train_settles_it_and_records_it(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.toml").write_text(STUDY)
    ratrain(tmp_path / "runs", *how, "--scale", "tiny", *SHORT, "--device", "cpu")
    recorded = [json.loads(file.read_text())["variables"] for file in tmp_path.glob("runs/v*/s1/env.json")]
    assert recorded
    assert all(told["GOMP_SPINCOUNT"] in ("1000", "10000") for told in recorded)


@pytest.mark.slow
def test_a_wait_changes_no_bit(tmp_path):
    sums = []
    for number, waits in enumerate(({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "1000"}, {})):
        folder = tmp_path / str(number)
        ratrain(folder, "v0", "--scale", "study", *SHORT, "--device", "cpu", OMP_NUM_THREADS="2", **waits)
        (file,) = folder.glob("*/s1/checkpoints/step-00000002/SHA256SUMS")
        sums.append([line for line in file.read_text().splitlines() if line.endswith(".safetensors")])
    assert len(sums[0]) == 2
    assert sums[0] == sums[1] == sums[2]
