"""From a manifest to a folder that tells the whole story, and back."""

from __future__ import annotations

import errno
import json
import os
import signal

import pytest
import torch

from ratrain.config.identity import recipe_hash, run_folder, run_hash
from ratrain.config.read import read_source
from ratrain.config.resolve import resolve
from ratrain.errors import (
    DataError,
    DiskError,
    GaveUpError,
    ManifestError,
    MissingError,
    PreemptedError,
    UnavailableError,
    UsageError,
)
from ratrain.events import Notice, PhaseStarted, Window
from ratrain.registry import optim_kinds, patch_kinds
from ratrain.run.launch import train
from ratrain.run.start import AlreadyDone, Launch
from ratrain.sinks.jsonl import Jsonl
from ratrain.storage import checkpoint
from ratrain.storage.checkpoint import load_newest

SHORT = ("train.budget.steps=4", "log.every=1", "eval.every=2", "eval.windows=2", "checkpoint.every=2")


def resolved(source, patches=()):
    return resolve(source, patches=patch_kinds(patches), optimizers=optim_kinds())


@pytest.fixture
def launch(tiny_source, tmp_path):
    """Trains in tmp_path/runs; returns the run's folder and what its sink heard."""

    def launch(*overrides, sink=None, name="v1", **options):
        source = tiny_source(name, *SHORT, *overrides)
        heard = []
        options = Launch(out=tmp_path / "runs", device="cpu", **options)
        folder = train(resolved(source), source, options, sink=sink or heard.append)
        return folder, heard

    return launch


def stop_after(step):
    def sink(event):
        if isinstance(event, Window) and event.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return sink


def lines(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def newest_weights(folder):
    found, _, _ = load_newest(folder / "checkpoints")
    assert found
    return found.model


def trained_steps(folder):
    return [line["step"] for line in lines(folder) if line["event"] == "Window"]


def test_the_folder_is_named_by_what_is_trained_and_holds_all_there_is_to_know(launch, tiny, tmp_path):
    manifest = tiny("v1", *SHORT)
    folder, _ = launch()
    assert folder == tmp_path / "runs" / run_folder(manifest)
    assert {path.name for path in folder.iterdir()} == {
        *(
            "manifest.toml",
            "resolved.toml",
            "state.json",
            "events.jsonl",
            "summary.json",
            "env.json",
            "log.txt",
            "run.lock",
            "code.json",
        ),
        *("checkpoints", "samples"),
    }
    state = json.loads((folder / "state.json").read_text())
    assert state.items() >= {"status": "done", "step": 4, "pid": os.getpid()}.items()
    assert state["loss"] == next(line["loss"] for line in reversed(lines(folder)) if line["event"] == "Evaluated")
    env = json.loads((folder / "env.json").read_text())
    assert env.items() >= {"torch": torch.__version__, "threads": 1, "device": "cpu"}.items()
    assert [path.name for path in (folder / "samples").iterdir()] == ["step-00000004.txt"]


def test_the_log_has_a_stamped_line_for_each_thing_that_was_said(launch):
    folder, _ = launch()
    log = (folder / "log.txt").read_text().splitlines()
    assert all(line[:4].isdecimal() and line[10] == "T" and line[19] == "Z" for line in log)
    assert sum("validation loss" in line and "done" not in line for line in log) == 2
    assert sum(" % " in line for line in log) == 4
    assert "done at step 4" in log[-1]


def test_the_sink_hears_what_the_file_holds(launch):
    folder, heard = launch()
    assert [type(event).__name__ for event in heard] == [line["event"] for line in lines(folder)]


def test_the_resolved_manifest_in_the_folder_is_the_same_run(launch, tiny):
    folder, _ = launch()
    again = resolved(read_source(folder / "resolved.toml"))
    assert run_hash(again) == run_hash(tiny("v1", *SHORT))
    assert recipe_hash(again) == recipe_hash(tiny("v1", *SHORT))
    assert run_folder(again) == str(folder.relative_to(folder.parents[1]))


def test_a_finished_run_is_left_alone(launch):
    folder, _ = launch()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"}
    with pytest.raises(AlreadyDone, match="this run is done") as done:
        launch()
    assert done.value.path == folder
    assert done.value.loss == json.loads((folder / "state.json").read_text())["loss"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_fresh_moves_the_earlier_run_aside_and_gives_the_same_again(launch):
    folder, _ = launch()
    first = newest_weights(folder)
    launch(fresh=True)
    old = folder.with_name("s1.old-1")
    assert sorted(path.name for path in old.iterdir()) == sorted(path.name for path in folder.iterdir())
    second = newest_weights(folder)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_fresh_with_nothing_there_moves_nothing(launch):
    folder, _ = launch(fresh=True)
    assert [path.name for path in folder.parent.iterdir()] == ["s1"]


def test_a_stopped_run_says_so_and_goes_on(launch):
    with pytest.raises(PreemptedError):
        launch(sink=stop_after(3))
    folder, _ = launch(resume="must")
    assert trained_steps(folder) == [1, 2, 3, 4]


def test_state_tells_of_a_stop(launch, tmp_path):
    with pytest.raises(PreemptedError):
        launch(sink=stop_after(3))
    (file,) = tmp_path.glob("runs/*/s1/state.json")
    assert json.loads(file.read_text()).items() >= {"status": "preempted", "step": 3}.items()


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("at", [1, 3])
def test_after_a_kill_each_step_still_stands_in_the_events_once(launch, at):
    # step 1: before any checkpoint, so that the run starts over; step 3: it goes back to 2
    def kill(event):
        if isinstance(event, Window) and event.step == at:
            raise Killed

    with pytest.raises(Killed):
        launch(sink=kill)
    folder, _ = launch()
    assert trained_steps(folder) == [1, 2, 3, 4]


def test_resume_must_needs_a_checkpoint(launch):
    with pytest.raises(MissingError, match="--resume must"):
        launch(resume="must")


def test_resume_never_refuses_one(launch):
    with pytest.raises(PreemptedError):
        launch(sink=stop_after(1))
    with pytest.raises(UsageError, match="--fresh moves them aside"):
        launch(resume="never")
    launch(resume="never", fresh=True)


def test_a_moved_folder_resumes(launch, tiny_source, tmp_path):
    with pytest.raises(PreemptedError):
        launch(sink=stop_after(3))
    (tmp_path / "runs").rename(tmp_path / "moved")
    source = tiny_source("v1", *SHORT)
    options = Launch(out=tmp_path / "moved", device="cpu", resume="must")
    folder = train(resolved(source), source, options, sink=lambda event: None)
    assert trained_steps(folder) == [1, 2, 3, 4]


def test_a_run_that_cannot_start_leaves_no_folder(launch, tmp_path):
    with pytest.raises(MissingError, match="ratrain prepare"):
        launch("data.source=nowhere")
    assert not (tmp_path / "runs").exists()


def test_a_failure_leaves_its_reason_in_the_state(launch, tmp_path, monkeypatch):
    def full(_jsonl, event):
        if isinstance(event, Window):
            raise DiskError("no space left")

    monkeypatch.setattr(Jsonl, "__call__", full)
    with pytest.raises(DiskError):
        launch()
    (file,) = tmp_path.glob("runs/*/s1/state.json")
    state = json.loads(file.read_text())
    assert (state["status"], state["reason"]) == ("failed", "no space left")


def test_code_that_changed_under_a_run_is_refused_or_recorded(launch, tmp_path):
    with pytest.raises(PreemptedError):
        launch(sink=stop_after(3))
    (file,) = tmp_path.glob("runs/*/s1/code.json")
    digests = json.loads(file.read_text())
    file.write_text(json.dumps({**digests, "ratrain/model/gpt2.py": "other"}))
    with pytest.raises(ManifestError, match=r"ratrain/model/gpt2\.py: changed since"):
        launch()
    _, heard = launch(accept_code_change=True)
    assert [e.message for e in heard if isinstance(e, Notice)] == ["continues with changed code: ratrain/model/gpt2.py"]
    assert json.loads(file.read_text()) == digests


def test_a_run_that_dies_again_and_again_at_one_place_is_given_up_once(launch):
    def kill(event):
        if isinstance(event, Window) and event.step == 3:
            raise Killed

    for _ in range(4):  # once on the way to step 2, three times after it
        with pytest.raises(Killed):
            launch(sink=kill)
    with pytest.raises(GaveUpError, match=r"ended 3 times in a row with no checkpoint after step 2"):
        launch(sink=kill)
    folder, _ = launch()  # who asks again is heard
    assert trained_steps(folder) == [1, 2, 3, 4]


def test_a_new_checkpoint_starts_the_count_again(launch):
    def kill(event):
        if isinstance(event, Window) and event.step % 2 and chances.pop():
            raise Killed

    chances = [False, True, True, False, True, True]  # from the end: two deaths after step 0, then two after 2
    for _ in range(4):
        with pytest.raises(Killed):
            launch(sink=kill)
    folder, _ = launch()
    assert trained_steps(folder) == [1, 2, 3, 4]


def test_a_disk_without_room_is_told_before_the_first_step(launch, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 1_000_000)
    with pytest.raises(DiskError, match=r"3 checkpoints of [\d,]+ bytes need [\d,]+ bytes more, 1,000,000 are free"):
        launch()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("asynchronous", ["on", "off"])
def test_a_checkpoint_that_finds_no_room_is_told_and_the_next_is_tried(launch, monkeypatch, asynchronous):
    real, calls = os.rename, []

    def rename(source, target):
        calls.append(target)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    folder, heard = launch(f"checkpoint.asynchronous={asynchronous}")
    assert [e.level for e in heard if isinstance(e, Notice)] == ["warning"]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000004"]
    assert trained_steps(folder) == [1, 2, 3, 4]


def test_a_last_checkpoint_that_finds_no_room_is_a_failure(launch, monkeypatch, tmp_path):
    def rename(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(DiskError, match="No space left on device"):
        launch()
    (file,) = tmp_path.glob("runs/*/s1/state.json")
    assert json.loads(file.read_text()).items() >= {"status": "failed", "exit": 74}.items()


def test_damaged_checkpoints_end_the_run_with_advice(launch, tmp_path):
    with pytest.raises(PreemptedError):
        launch(sink=stop_after(3))
    for file in tmp_path.glob("runs/*/s1/checkpoints/*/model.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="--fresh"):
        launch()


def test_a_sink_that_fails_ends_nothing(launch):
    def broken(event):
        if isinstance(event, PhaseStarted):
            raise BrokenPipeError("the terminal is gone")

    folder, _ = launch(sink=broken)
    notices = [line["message"] for line in lines(folder) if line["event"] == "Notice"]
    assert notices == ["function failed and is dropped: BrokenPipeError: the terminal is gone"]
    assert trained_steps(folder) == [1, 2, 3, 4]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused_before_anything_is_made(tiny_source, tmp_path):
    source = tiny_source("v1", *SHORT)
    with pytest.raises(UnavailableError, match="use --device cpu"):
        train(resolved(source), source, Launch(out=tmp_path / "runs", device="cuda"), sink=print)
    assert not (tmp_path / "runs").exists()
