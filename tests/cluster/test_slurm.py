"""A real Slurm: the study's runs as an array, some of them killed, and slurmd once. FAULTS=long: twelve arms.

Skipped where Slurm cannot be started (Debian: apt-get install slurm-wlm munge; as root).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import psutil
import pytest

from tests.cluster.studies import FIXED, results_of, words_of

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
LONG = os.environ.get("FAULTS") == "long"
ARMS = [f"v{number}" for number in range(1, 13 if LONG else 4)]
SEEDS = [1, 2, 3] if LONG else [1, 2]
LIMIT = 1800 if LONG else 400  # seconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, PROGRAMS)),
        reason="needs Slurm, as root: apt-get install slurm-wlm munge",
    ),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory, own_cache):
    """Its folder; commands find it by the environment."""
    folder = tmp_path_factory.mktemp("slurm")
    script = Path(__file__).with_name("slurm.sh")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        subprocess.run(["bash", script, "start", folder], check=True, stdin=subprocess.DEVNULL)
        yield folder
        subprocess.run(["bash", script, "stop", folder], check=True)


def jobs() -> list[str]:
    done = subprocess.run(["squeue", "-h", "-r", "-o", "%A %T"], capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else ["slurmctld does not answer"]


def training() -> dict[int, psutil.Process]:
    """The processes that train a run of the study, by its number."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "--run" in words and "ratrain" in words:
            found[int(words[words.index("--run") + 1])] = process
    return found


def disturb(slurm: Path, victims: set[int], restart_at: int) -> list[str]:
    """Kills each victim once, when it is at work, and slurmd once `restart_at` runs have begun; waits for the end."""
    seen, told, tick = set[int](), list[str](), threading.Event()
    for _ in range(LIMIT * 2):
        for number, process in training().items():
            seen.add(number)
            if number in victims and process.cpu_times().user > 1.0:  # in its imports or later
                victims.discard(number)
                told.append(f"run {number} killed")
                process.send_signal(signal.SIGKILL)
        if len(seen) >= restart_at and "slurmd killed" not in told:
            os.kill(int((slurm / "slurmd.pid").read_text()), signal.SIGKILL)
            subprocess.run(["slurmd"], check=True, stdin=subprocess.DEVNULL)
            told.append("slurmd killed")
        if not jobs():
            return told
        tick.wait(0.5)
    raise AssertionError(f"not over after {LIMIT} s: {jobs()}")


def test_a_study_as_an_array_loses_nothing_and_trains_nothing_twice(slurm, ratrain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = FIXED.replace('["v9", "v19"]', json.dumps(ARMS)).replace("[1, 2, 3]", json.dumps(SEEDS))
    text = text.replace("steps = 6", "steps = 80") if LONG else text  # some switch on at step 75
    (tmp_path / "study.toml").write_text(text)
    code, out, err = ratrain(*words_of(Path("study.toml"), Path("many")), "--emit", "slurm", "--jobs", 2)
    assert code == 0, err
    subprocess.run(["bash", out.split("bash ")[1].strip()], check=True, stdin=subprocess.DEVNULL)
    count = len(Path("many/studies/fixed-tiny/jobs/runs.txt").read_text().splitlines())
    assert count >= (len(ARMS) + 1) * len(SEEDS)
    victims = set(random.Random(0).sample(range(1, count + 1), round(0.3 * count)))
    told = disturb(slurm, set(victims), restart_at=count // 2)
    assert len(told) == len(victims) + 1, told
    code, _, err = ratrain(*words_of(Path("study.toml"), Path("one")), "--jobs", 2)
    assert code == 0, err
    logs = "".join(file.read_text() for file in Path("many").rglob("jobs/*.log"))
    assert results_of(Path("many")) == results_of(Path("one")), logs
    ends = [file.read_text().count('"event": "RunEnded"') for file in Path("many").glob("*/s*/events.jsonl")]
    assert ends == [1] * count
    print(f"{count} runs on {socket.gethostname()}: {', '.join(told)}")


def test_an_account_that_is_refused_leaves_nothing_queued(slurm, ratrain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.toml").write_text(FIXED)
    words = (*words_of(Path("study.toml"), Path("runs")), "--emit", "slurm", "--sbatch=--partition=nowhere")
    script = ratrain(*words)[1].split("bash ")[1].strip()
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert done.returncode == 69
    assert "invalid partition specified: nowhere" in done.stderr
    assert jobs() == []
