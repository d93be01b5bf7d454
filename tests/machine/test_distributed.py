"""Several processes train what one trains: same losses, one set of weights, one writer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist

from ratrain.config.identity import run_folder
from ratrain.engine.engine import Engine
from ratrain.errors import ManifestError
from ratrain.machine import heartbeat as heartbeats
from ratrain.machine.distributed import World, local_rows
from ratrain.machine.heartbeat import Heartbeat
from ratrain.storage.checkpoint import load
from tests.machine.gangs import KEYS, losses


@pytest.fixture(scope="module")
def runs(gang, tmp_path_factory):
    """The folder of the run on 1, 2 and 4 processes, one that was stopped on 2 and went on, and what became of each.

    In float64, in which the order of a sum hardly shows: each number of processes has its own.
    """
    out = tmp_path_factory.mktemp("runs")
    again, fewer = out / "2 again", out / "2 to 1"
    told = gang(
        *((count, out / str(count), (), None) for count in (1, 2, 4)),
        *((2, again, (), [1, 13]), (2, again, (), None), (2, fewer, (), [0, 13]), (1, fewer, (), None)),
        dtype="float64",
    )
    folders = {path.name: next(path.glob("*/s1")) for path in out.iterdir()}
    return folders, dict(zip(("1", "2", "4", "stop", "2 again", "stop 0", "2 to 1"), told, strict=True))


@pytest.mark.parametrize("name", ["2", "4", "2 again", "2 to 1"])
def test_the_number_of_processes_does_not_change_what_is_trained(runs, name):
    folders, told = runs
    assert set(told[name]["codes"]) == {0}
    alone, shared = losses(folders["1"]), losses(folders[name])
    assert len(alone) == len(shared) == 30
    assert shared == pytest.approx(alone, rel=1e-11)
    assert losses(folders[name], "Evaluated") == pytest.approx(losses(folders["1"], "Evaluated"), rel=1e-11)


@pytest.mark.parametrize("name", ["2", "4", "2 again"])
def test_all_processes_end_with_the_same_weights(runs, name):
    assert len(set(runs[1][name]["weights"])) == 1


def test_a_signal_to_one_process_stops_all_after_the_same_step(runs):
    told = runs[1]
    assert told["stop"]["codes"] == told["stop 0"]["codes"] == [75, 75]
    assert len(set(told["stop"]["weights"])) == 1


def test_a_run_that_was_stopped_ends_with_the_bits_of_the_unbroken_one(runs):
    assert runs[1]["2 again"]["weights"] == runs[1]["2"]["weights"]
    assert losses(runs[0]["2 again"]) == losses(runs[0]["2"])


def test_one_process_writes(runs):
    (event,) = [json.loads(line) for line in (runs[0]["4"] / "events.jsonl").read_text().splitlines()][:1]
    assert (event["event"], event["processes"]) == ("RunStarted", 4)


def test_bf16_masters_are_averaged_over_all_micro_steps(gang, tmp_path):
    keys = ("train.precision=bf16", "train.budget.steps=4")
    told = gang(*((count, tmp_path / str(count), keys, None) for count in (1, 2)))
    assert len(set(told[1]["weights"])) == 1
    one, two = (losses(next(tmp_path.glob(f"{count}/*/s1"))) for count in (1, 2))
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-3, atol=0)


def test_weights_are_pruned_alike_by_all(gang, tmp_path):
    keys = [f"prune.{key}" for key in ("kind=movement", "target=0.5", "every=5", "layers=depth", "embedding=true")]
    told = gang((2, tmp_path, keys, None))
    assert told[0]["codes"] == [0, 0]
    assert len(set(told[0]["weights"])) == 1
    summary = json.loads(next(tmp_path.glob("*/s1/summary.json")).read_text())["pruning"]
    zeros, weights = (sum(pair[at] for pair in summary["zeros"].values()) for at in (0, 1))
    assert zeros == weights // 2
    assert summary["loss"] == summary["loss_reloaded"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_stopped_is_noticed_by_the_others(gang, tmp_path, rank):
    told = gang((3, tmp_path, ("train.batch=6", "train.micro_batch=1"), [rank, 13, signal.SIGSTOP]))
    codes = told[0]["codes"]
    assert codes.pop(rank) == -signal.SIGKILL
    assert codes == [69, 69]
    lines = [json.loads(line) for line in next(tmp_path.glob("*/s1/events.jsonl")).read_text().splitlines()]
    words = [line["message"] for line in lines if line["event"] == "Notice"]
    if rank:
        assert "process 1 of 3" in words[-1]
        state = json.loads(next(tmp_path.glob("*/s1/state.json")).read_text())
        assert (state["status"], state["exit"], "process 1 of 3" in state["reason"]) == ("failed", 69, True)
    assert ("process 1 of 3" if rank else "the store of the group") in told[0]["said"]
    (saved,) = next(tmp_path.glob("*/s1/checkpoints")).iterdir()
    assert load(saved).step == 10


def test_a_process_that_fails_alone_ends_the_others(gang, tmp_path):
    told = gang((2, tmp_path, (), [1, 13, "fails"]))
    assert told[0]["codes"] == [69, 1]
    assert "a fault of this process alone" in told[0]["said"]


@pytest.fixture
def heart(monkeypatch):
    """The heartbeat of process 0 of 2, whose watcher beats by hand, and what it has found."""
    monkeypatch.setattr(heartbeats, "PERIOD", 1e6)
    found, store = [], dist.HashStore()
    store.set("beat/1", "1 0 host, pid 3")
    monkeypatch.setattr(Heartbeat, "_end", lambda self, what: found.append(what))
    heart = Heartbeat(store, 0, 2)
    store.wait(["beat/0"])
    heart._ended.set()
    heart._speaker.join()
    return heart, found


def beat(heart, times, *, answered, moves=False):
    for _ in range(times):
        heart._rounds += answered
        heart.step += moves
        heart._tick()


def test_a_process_that_is_silent_is_found_and_a_slow_store_is_not_its_silence(heart):
    heart, found = heart
    beat(heart, 1, answered=True)
    beat(heart, heartbeats.SILENT - 1, answered=True)
    beat(heart, heartbeats.SILENT, answered=False)
    assert not found
    beat(heart, 1, answered=True)
    assert "process 1 of 2 (host, pid 3; last at step 0)" in found[0]


def test_while_steps_advance_everyone_lives(heart):
    """As where the launcher that holds the store is suspended and the processes train on."""
    heart, found = heart
    beat(heart, 1000, answered=False, moves=True)
    beat(heart, 3 * heartbeats.SILENT - 1, answered=False)
    assert not found
    beat(heart, 1, answered=False)
    assert "the store of the group has not answered process 0 of 2" in found[0]


def test_processes_with_unlike_torch_do_not_train_together(gang, tmp_path):
    told = gang((2, tmp_path, (), [1, 0, "torch"]))
    assert told[0]["codes"] == [69, 69]
    assert told[0]["said"].count("ratrain: process 1 on") == 1
    assert "has torch 2.0, process 0 on" in told[0]["said"]
    assert not list(tmp_path.rglob("s1"))


def test_rank_0_tells_the_step_of_every_process_once_a_minute(tmp_path):
    store = dist.HashStore()
    store.set("beat/1", "7 41 host, pid 3")
    heard = Heartbeat(store, 0, 2, step=42)
    store.wait(["beat/0"])
    heard.stop(clean=True)  # after one beat
    assert heard.reading() == {0: (42, 0.0), 1: (41, 0.0)}
    assert heard.reading() is None
    assert store.get("beat/0").decode().startswith("-1 42 ")  # it left, which is no silence


def test_what_is_wrong_is_said_once_and_all_leave_with_its_code(gang, tmp_path):
    told = gang((2, tmp_path, ("data.source=nowhere",), None))
    assert told[0]["codes"] == [66, 66]
    assert not list(tmp_path.rglob("s1"))


def test_rows_that_do_not_divide_are_refused():
    assert local_rows(World(0, 4), batch=8, micro_batch=8) == 2
    assert local_rows(World(0, 2), batch=8, micro_batch=2) == 2
    with pytest.raises(ManifestError, match="3 does not divide the 4 sequences"):
        local_rows(World(0, 2), batch=8, micro_batch=3)


def test_a_batch_that_does_not_divide_names_its_key(tiny, tmp_path):
    with pytest.raises(ManifestError, match=r"train\.batch: 4 sequences do not divide among 3 processes"):
        Engine(tiny("v1"), checkpoints=tmp_path, device=torch.device("cpu"), emit=print, world=World(0, 3))


def test_gradients_travel_with_the_last_micro_step_only(tiny, tmp_path):
    entered = []

    class Counting(World):
        def keep_local(self, model):
            entered.append(model)
            return nullcontext()

    manifest = tiny("v1", "train.batch=8", "train.micro_batch=2")
    engine = Engine(manifest, checkpoints=tmp_path, device=torch.device("cpu"), emit=print, world=Counting())
    engine.train_step(*engine.setup.sampler.batch(0))
    assert len(entered) == 3


def test_devices_start_that_many_processes(tmp_path, tiny):
    sets = [word for key in KEYS for word in ("--set", key)]
    command = [*("v9", "--scale", "tiny", *sets, "--set", "train.budget.steps=5", "--device", "cpu", "--devices", "2")]
    done = subprocess.run(
        [sys.executable, "-m", "ratrain", *command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "cpu x 2" in done.stdout
    assert done.stdout.count("done at step 5") == 1
    folder = tmp_path / run_folder(tiny("v9", *KEYS, "train.budget.steps=5"))
    assert json.loads((folder / "state.json").read_text())["status"] == "done"


def test_devices_that_are_not_there_are_refused(ratrain, tmp_path):
    code, _, err = ratrain("v9", "--scale", "tiny", "--devices", "9999", "--device", "cuda", "--out", tmp_path)
    assert (code, list(tmp_path.iterdir())) == (69, [])
    assert "--devices 9999: this machine has" in err
    code, _, err = ratrain("v9", "--devices", "2", "--device", "cuda:1", "--out", tmp_path)
    assert (code, "each process takes its own" in err) == (2, True)
