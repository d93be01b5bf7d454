"""What a tracker draws is what was said; what goes wrong with it is told, and touches no run."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import types
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest

from ratrain import events
from ratrain.config.schema import LogSection
from ratrain.errors import Exit
from ratrain.lock import lock
from ratrain.sinks import trackers
from ratrain.sinks.fanout import Fanout
from ratrain.sinks.hosted import Trackio, WandB
from ratrain.sinks.remote import Remote
from ratrain.sinks.tracker import Queued, TensorBoard, Tracker, points

QUICK = ["v1", "--scale", "tiny", "--device", "cpu", "--set", "compile.scope=off", "--set", "train.budget.steps=6"]
CADENCE = ["--set", "log.every=2", "--set", "eval.every=3", "--set", "checkpoint.every=2", "--set", "eval.windows=2"]


def tracked(*names):
    return [*QUICK, *CADENCE, "--set", f"log.trackers={json.dumps(names)}"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder to run in, as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr("ratrain.engine.engine._SAMPLE_TOKENS", 2)
    return tmp_path


def run_of(home):
    (run,) = home.glob("runs/*/s1")
    return run


def stated(run, kind):
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def warnings(run):
    return [line["message"] for line in stated(run, "Notice") if line["level"] == "warning"]


# what is drawn


def test_each_step_of_a_window_has_its_own_loss_and_the_last_one_the_rest(window):
    (first, early), (last, late) = points(window(5, losses=(7.5, 7.25), grad_norms=(1.0, 3.0), mfu=None))
    assert (first, early) == (4, {"train/loss": 7.5, "train/grad_norm": 1.0})
    assert last == 5
    assert late["train/loss"] == 7.25
    assert late["speed/tokens_per_second"] == 1280.0
    assert "speed/mfu" not in late


def test_evaluations_and_the_load_are_drawn_and_texts_are_not(one_of_each):
    drawn = {type(event).__name__ for event in one_of_each if list(points(event))}
    assert drawn == {"Window", "Evaluated", "Probed", "Machine"}
    gpu = events.Machine(5, 99.0, 1 << 30, {"watts": 250.0})
    named = {"machine/cpu_percent": 99.0, "machine/memory": 1 << 30, "machine/gpu_watts": 250.0}
    assert list(points(gpu)) == [(5, named)]


def test_a_probe_is_drawn_as_its_mean_over_layers_and_heads():
    probed = events.Probed(5, {"unified_ra": {"w_rec": [[0.1, 0.3], [0.2, 0.6]], "share": [[], [0.5]]}})
    assert list(points(probed)) == [(5, {"unified_ra/w_rec": pytest.approx(0.3), "unified_ra/share": 0.5})]


# trackers that misbehave


class Fake(Tracker):
    """Keeps what it hears; does `act` at each event."""

    name = "fake"

    def __init__(self, act=lambda event: None):
        self.heard, self.act, self.closed, self.abandoned = [], act, False, threading.Event()

    def __call__(self, event):
        self.act(event)
        self.heard.append(event)

    def close(self):
        self.closed = True

    def abandon(self):
        self.abandoned.set()


def refuse(event):
    raise RuntimeError("no route\nto host")


@pytest.fixture
def fanout():
    """A fan-out, and what is said in it as (event, thread)."""
    fanout, heard = Fanout(), []
    fanout.add(lambda event: heard.append((event, threading.current_thread())))
    return fanout, heard


def notices(heard):
    assert {thread for _, thread in heard} <= {threading.current_thread()}
    return [event.message for event, _ in heard if isinstance(event, events.Notice)]


def test_a_tracker_hears_all_that_it_draws_and_is_closed(fanout, one_of_each):
    fanout, heard = fanout
    fanout.add(Queued(fake := Fake(), fanout))
    for event in one_of_each:
        fanout(event)
    fanout.close()
    silent = (events.PhaseStarted, events.Compiled, events.Pretrained, events.Fitted, events.Saved, events.Notice)
    silent += (events.PruningBegan, events.Pruned, events.PruningEvaluated, events.OptimizerTold)
    assert fake.heard == [event for event in one_of_each if not isinstance(event, silent)]
    assert fake.closed
    assert not fake.abandoned.is_set()
    assert notices(heard) == ["all is well", "all is not well"]


@pytest.mark.parametrize(
    ("act", "told"),
    [(refuse, "RuntimeError: no route"), (lambda event: sys.exit(3), "RuntimeError: SystemExit(3)")],
    ids=["raises", "exits"],
)
def test_one_that_fails_is_reported_once_and_dropped(fanout, window, act, told):
    fanout, heard = fanout
    fanout.add(Queued(fake := Fake(act), fanout))
    fanout(window(1))
    for thread in threading.enumerate():
        if thread.name == "ratrain-fake":
            thread.join()
    fanout(window(2))
    fanout(window(3))
    fanout.close()
    assert notices(heard) == [f"fake failed and is dropped: {told}"]
    assert fake.abandoned.is_set()


def test_one_that_fails_at_its_last_event_is_reported_at_the_end(fanout, window):
    fanout, heard = fanout
    fanout.add(Queued(Fake(refuse), fanout))
    fanout(window(1))
    fanout.close()
    assert notices(heard) == ["fake failed and is dropped: RuntimeError: no route"]


def test_one_that_fails_to_close_is_reported(fanout, monkeypatch):
    fanout, heard = fanout
    monkeypatch.setattr(Fake, "close", lambda self: refuse(None))
    fanout.add(Queued(Fake(), fanout))
    fanout.close()
    assert notices(heard) == ["fake failed and is dropped: RuntimeError: no route"]


def test_one_that_hangs_is_left_behind(fanout, window):
    fanout, heard = fanout
    released = threading.Event()
    fanout.add(Queued(fake := Fake(lambda event: released.wait()), fanout, patience=0.01))
    for step in range(100):
        fanout(window(step))
    fanout.close()
    assert fake.abandoned.wait(60)
    assert not fake.heard
    assert notices(heard) == [
        "fake failed and is dropped: TimeoutError: "
        "not done 0.01 s after the run; events.jsonl has what is missing there"
    ]
    released.set()


def test_a_second_request_to_stop_ends_the_wait(fanout, window, monkeypatch):
    fanout, heard = fanout
    released = threading.Event()
    sink = Queued(fake := Fake(lambda event: released.wait()), fanout)
    fanout.add(sink)
    fanout(window(1))

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(vars(sink)["_thread"], "join", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fanout.close()
    assert fake.abandoned.wait(60)
    assert not notices(heard)
    released.set()


def test_a_flood_is_dropped_and_counted_but_not_the_end(fanout, window):
    fanout, heard = fanout
    entered, released = threading.Event(), threading.Event()
    fake = Fake(lambda event: (entered.set(), released.wait()))
    fanout.add(Queued(fake, fanout, size=3))
    fanout(window(0))
    assert entered.wait(60)  # the first is out of the queue
    for step in range(1, 10):
        fanout(window(step))
    fanout(ended := events.RunEnded("done", 9, None))
    first = "fake is slow and misses events; events.jsonl has them all"
    assert notices(heard) == [first]
    released.set()
    fanout.close()
    assert fake.heard == [window(0), window(1), window(2), window(3), ended]
    assert notices(heard) == [first, "fake missed 6 events; events.jsonl has them all"]


def test_where_to_look_is_told_once(fanout, window):
    fanout, heard = fanout
    fake = Fake(lambda event: setattr(fake, "place", "https://example.org/1"))
    fanout.add(Queued(fake, fanout))
    for step in range(3):
        fanout(window(step))
    fanout.close()
    assert notices(heard) == ["fake: https://example.org/1"]


class Third(Fake):
    """Stands in for TensorBoard, and raises at its third event."""

    name = "tensorboard"

    def __init__(self):
        super().__init__(lambda event: refuse(event) if len(self.heard) == 2 else None)


def test_a_run_outlives_its_tracker(ratrain, home, monkeypatch):
    monkeypatch.setattr(trackers, "TensorBoard", Third)
    code, out, _ = ratrain(*tracked("tensorboard"))
    run, told = run_of(home), "tensorboard failed and is dropped: RuntimeError: no route"
    assert code == Exit.DONE
    assert warnings(run) == [told]
    assert out.count(f"warning: {told}") == 1
    assert (run / "log.txt").read_text().count(f"warning: {told}") == 1
    assert json.loads((run / "state.json").read_text())["status"] == "done"


# what is refused before anything is done


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
@pytest.mark.parametrize("rehearse", [[], ["--dry-run"], ["--fresh"]])
def test_a_tracker_that_is_not_installed_is_refused(ratrain, home, monkeypatch, name, rehearse):
    monkeypatch.setitem(sys.modules, name, None)
    code, _, err = ratrain(*tracked(name), *rehearse)
    assert code == Exit.UNAVAILABLE
    assert f"log.trackers: \"{name}\" needs the package {name}; pip install 'ratrain[trackers]'" in err
    assert not list(home.iterdir())


def test_a_tracker_that_nobody_knows_is_a_fault_of_the_manifest(ratrain, home):
    code, _, err = ratrain(*tracked("mlflow"))
    assert code == Exit.BAD_MANIFEST
    assert "--set: log.trackers: 'mlflow' is not one of 'tensorboard', 'wandb', 'trackio'" in err


def test_one_asked_for_twice_is_one():
    made = trackers.trackers(LogSection(trackers=("tensorboard", "tensorboard")), print)
    assert [sink.name for sink in made] == ["tensorboard"]
    made[0].close()


# TensorBoard


@pytest.fixture
def board():
    """What TensorBoard reads in a run's folder: {name: [(step, value)]}, texts as lists of strings."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def board(run):
        events = accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        tags = events.Tags()
        numbers = {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags["scalars"]}
        texts = {
            tag.removesuffix("/text_summary"): [
                (text.step, text.tensor_proto.string_val[0].decode()) for text in events.Tensors(tag)
            ]
            for tag in tags["tensors"]
        }
        return {**numbers, **texts}

    return board


def test_tensorboard_shows_what_the_events_say(ratrain, home, board):
    code, out, err = ratrain(*tracked("tensorboard"))
    assert code == Exit.DONE, err
    run = run_of(home)
    shown, windows = board(run), stated(run, "Window")
    assert shown["train/loss"] == list(enumerate([loss for line in windows for loss in line["losses"]], start=1))
    norms = [norm for line in windows for norm in line["grad_norms"]]
    assert [value for _, value in shown["train/grad_norm"]] == pytest.approx(norms)
    for name, field in (("train/lr", "lr"), ("speed/tokens_per_second", "tokens_per_second"), ("speed/mfu", "mfu")):
        assert [step for step, _ in shown[name]] == [line["step"] for line in windows]
        assert [value for _, value in shown[name]] == pytest.approx([line[field] for line in windows])
    evaluated = stated(run, "Evaluated")
    assert [value for _, value in shown["val/loss"]] == pytest.approx([line["loss"] for line in evaluated])
    assert shown["machine/memory"][0][1] == pytest.approx(stated(run, "Machine")[0]["memory"])
    (step, text), *_ = shown["manifest"]
    assert (step, 'id = "v1"' in text) == (0, True)
    assert stated(run, "RunStarted")[0]["recipe_hash"] in shown["run"][0][1]
    (sample,) = stated(run, "Sampled")
    assert [(step, text.strip()) for step, text in shown["sample"]] == [(6, sample["text"].strip())]
    assert "warning" not in out


class Killed(BaseException):
    """The process ends here."""


def kill():
    raise Killed


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def after_step(monkeypatch):
    """Runs inside it do `act` once they have told of `step`."""

    @contextmanager
    def after_step(step, act):
        def emit(self, event, whole=Fanout.__call__):
            whole(self, event)
            if isinstance(event, events.Window) and event.step == step:
                act()

        with monkeypatch.context() as patch:
            patch.setattr(Fanout, "__call__", emit)
            yield

    return after_step


@pytest.mark.parametrize(("at", "goes_on_at"), [(1, 0), (5, 4)])
def test_after_a_kill_each_step_is_shown_once(ratrain, home, board, after_step, at, goes_on_at):
    with after_step(at, kill), pytest.raises(Killed):
        ratrain(*tracked("tensorboard"), "--set", "log.every=1")
    code, _, err = ratrain(*tracked("tensorboard"), "--set", "log.study=another")
    assert code == Exit.DONE, err
    run = run_of(home)
    losses = [loss for line in stated(run, "Window") for loss in line["losses"]]
    shown = board(run)
    assert shown["train/loss"] == list(enumerate(losses, start=1))
    assert [step for step, _ in shown["manifest"]] == [0, goes_on_at]


def test_numbers_that_are_not_finite_reach_tensorboard(tmp_path, board, started, window):
    (tmp_path / "resolved.toml").write_text("")
    sink = TensorBoard()
    sink(started(folder=str(tmp_path)))
    sink(window(2, losses=(math.nan, math.inf), grad_norms=(1.0, -math.inf)))
    sink.close()
    (_, nan), infinite = board(tmp_path)["train/loss"]
    assert math.isnan(nan)
    assert infinite == (2, math.inf)


# a process of its own

# stands in for trackio: prints, keeps what it gets in a file, fails or hangs as its project asks
CHATTY = """
import json, os, signal, subprocess, sys
print("loud at import")
CHILD = '''import fcntl, signal
file = open("held", "w")
fcntl.flock(file, fcntl.LOCK_EX)
print(flush=True)
signal.pause()
'''

class Run:
    def __init__(self, project):
        self.project = project
    def log(self, values, step):
        print("* logged")
        with open("got.jsonl", "a") as file:
            file.write(json.dumps([step, values]) + "\\n")
        if self.project == "fails":
            raise ConnectionError("no route")
        if self.project == "hangs":
            child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE)
            child.stdout.readline()
            open("hanging", "w").close()
            signal.pause()
    def finish(self):
        open("finished", "w").close()

def init(project, **options):
    print("* project initialized")
    if project == "leaves":
        os._exit(3)
    return Run(project)
"""


@pytest.fixture
def chatty(home, monkeypatch, started):
    """Makes a tracker of a project in a process that imports CHATTY as trackio, with its first event."""
    (home / "trackio.py").write_text(CHATTY)
    (home / "trackio").mkdir()
    (home / "resolved.toml").write_text("")
    monkeypatch.setenv("PYTHONPATH", f"{home}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return lambda project: (Remote("trackio", LogSection(project=project)), started(folder=str(home)))


def test_what_a_library_prints_stays_in_its_process(chatty, home, capfd, window):
    tracker, started = chatty("fine")
    for event in (started, window(), events.Evaluated(3, math.nan, 256, 0.5)):
        tracker(event)
    assert tracker.place == "trackio show --project fine"
    tracker.close()
    assert capfd.readouterr() == ("", "")
    assert (home / "finished").exists()
    got = [json.loads(line) for line in (home / "got.jsonl").read_text().splitlines()]
    drawn = [
        (step, values)
        for event in (window(), events.Evaluated(3, math.nan, 256, 0.5))
        for step, values in points(event)
    ]
    assert repr(got) == repr([list(pair) for pair in drawn])


@pytest.mark.parametrize(("project", "message"), [("fails", "ConnectionError: no route"), ("leaves", "EOFError: its")])
def test_an_error_in_its_process_is_the_tracker_s(chatty, window, project, message):
    tracker, started = chatty(project)
    with pytest.raises(RuntimeError) as caught:
        for event in (started, window()):
            tracker(event)
    assert f"{type(caught.value).__name__}: {caught.value}".startswith(message)
    tracker.abandon()
    assert tracker._process is not None and tracker._process.wait()


def test_a_process_that_hangs_is_ended_with_its_children(chatty, home, window, fanout):
    tracker, started = chatty("hangs")
    out, heard = fanout
    out.add(Queued(tracker, out, patience=3.0))
    for event in (started, window()):
        out(event)
    while not (home / "hanging").exists():
        assert tracker._process is None or tracker._process.poll() is None, notices(heard)
        os.sched_yield()
    with pytest.raises(BlockingIOError):
        lock(home / "held")
    out.close()
    assert "trackio failed and is dropped: TimeoutError: not done 3 s after the run" in notices(heard)[-1]
    assert tracker._process is not None and tracker._process.wait() == -signal.SIGKILL
    os.close(lock(home / "held", wait=10))  # which the child held


def test_a_trainer_that_is_killed_leaves_a_finished_run(chatty, home, window):
    tracker, started = chatty("fine")
    tracker(started)
    assert tracker._process is not None and tracker._process.stdin
    tracker._process.stdin.close()  # as the end of the trainer does
    tracker._process.wait()
    assert (home / "finished").exists()
    tracker.abandon()


# Weights & Biases


class Run:
    """A run of the fake wandb."""

    def __init__(self, options):
        self.options, self.rows, self.ended, self.metrics = options, [], [], []
        self.offline, self.url = False, "https://example.org/1"

    def log(self, row):
        json.dumps(row)
        self.rows.append(row)

    def define_metric(self, name, **options):
        self.metrics.append((name, options))

    def mark_preempting(self):
        self.ended.append("preempting")

    def finish(self, exit_code):
        self.ended.append(exit_code)


@pytest.fixture
def wandb(monkeypatch):
    """A module that stands in for wandb and keeps the runs that were begun."""
    module = types.ModuleType("wandb")
    runs = []

    def init(**options):
        runs.append(Run(options))
        return runs[-1]

    vars(module).update(runs=runs, init=init, Settings=dict, setup=lambda settings: None, teardown=lambda: None)
    module.__spec__ = ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(trackers, "Remote", lambda name, log: WandB(log))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


def test_a_run_in_wandb_is_named_grouped_and_described(ratrain, home, wandb):
    code, out, err = ratrain(*tracked("wandb"), "--seed", 1)
    assert code == Exit.DONE, err
    run, (made,) = run_of(home), wandb.runs
    (started,) = stated(run, "RunStarted")
    told = made.options
    assert (told["project"], told["group"], told["name"]) == ("ratrain", run.parent.name, "v1/s1")
    assert told["id"].startswith(started["run_hash"][:16])
    assert told["resume"] == "allow"
    assert Path(told["dir"]).resolve() == run
    assert told["config"]["recipe_hash"] == started["recipe_hash"]
    assert told["config"]["patch"]["unified_ra"]["rank"] == 4
    assert made.metrics == [("step", {"hidden": True}), ("*", {"step_metric": "step"})]
    assert made.ended == [0]
    assert "wandb: https://example.org/1" in out


def test_every_row_has_its_step(ratrain, home, wandb):
    ratrain(*tracked("wandb"))
    (made,), run = wandb.runs, run_of(home)
    losses = [(row["step"], row["train/loss"]) for row in made.rows if "train/loss" in row]
    assert losses == list(enumerate([loss for line in stated(run, "Window") for loss in line["losses"]], start=1))
    assert [row["val/loss"] for row in made.rows if "val/loss" in row] == [
        line["loss"] for line in stated(run, "Evaluated")
    ]
    assert made.rows[-1] == {"step": 6, "sample": stated(run, "Sampled")[0]["text"]}


def test_a_study_and_two_seeds_are_named(ratrain, home, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    ratrain(*tracked("wandb"), "--set", "log.study=pilot", "--set", "seed.data=7")
    ratrain(*tracked("wandb"), "--fresh", "--set", "log.project=ours", "--set", "log.run_name=first")
    said = [(made.options["project"], made.options["group"], made.options["name"]) for made in wandb.runs]
    assert said[0] == ("mine", "pilot", "v1/s1-7")
    assert (said[1][0], said[1][2]) == ("ours", "first")


def test_a_run_that_goes_on_is_the_same_in_wandb_and_a_fresh_one_is_not(ratrain, home, wandb, after_step):
    with after_step(2, stop):
        assert ratrain(*tracked("wandb"))[0] == Exit.PREEMPTED
    assert ratrain(*tracked("wandb"))[0] == Exit.DONE
    assert ratrain(*tracked("wandb"), "--fresh")[0] == Exit.DONE
    assert [made.ended for made in wandb.runs] == [["preempting", 1], [0], [0]]
    first, second, fresh = (made.options["id"] for made in wandb.runs)
    assert first == second
    assert first[:16] == fresh[:16]
    assert first != fresh


def test_a_run_that_ends_badly_is_told_to_wandb(tmp_path, wandb, started):
    (tmp_path / "resolved.toml").write_text("")
    for ended, told in (([events.RunEnded("diverged", 3, None)], [1]), ([], [1])):
        sink = WandB(LogSection())
        for event in (started(folder=str(tmp_path)), *ended):
            sink(event)
        sink.close()
        assert wandb.runs[-1].ended == told


def test_wandb_that_cannot_begin_is_dropped(ratrain, home, wandb):
    def init(**options):
        raise ConnectionError("401: who are you")

    vars(wandb)["init"] = init
    code, _, _ = ratrain(*tracked("wandb"))
    assert code == Exit.DONE
    assert warnings(run_of(home)) == ["wandb failed and is dropped: ConnectionError: 401: who are you"]


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_the_real_wandb_offline_stops_resumes_and_ends(home):
    """In processes of its own: it leaves hooks behind in the one that it is imported into."""
    environment = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ratrain", *tracked("wandb"), "--set", "train.budget.steps=200", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, **pipes) as child:
        for line in child.stdout:
            if json.loads(line).get("step", 0) >= 4:
                child.send_signal(signal.SIGTERM)
                break
        _, err = child.communicate()
    assert child.returncode == Exit.PREEMPTED, err
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == Exit.DONE, done.stderr
    assert "Traceback" not in err + done.stderr
    run = run_of(home)
    assert not warnings(run)
    name = (run / "wandb" / "id").read_text()
    pieces = [path.name for path in run.glob("wandb/offline-run-*/*.wandb")]
    assert pieces == [f"run-{name}.wandb"] * 2
    assert sum(len(line["losses"]) for line in stated(run, "Window")) == 200


# Trackio


class TrackioRun:
    """A run of the fake Trackio."""

    def __init__(self, options):
        self.options, self.rows, self.finished = options, [], False

    def log(self, values, step):
        json.dumps(values)
        self.rows.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def trackio(monkeypatch):
    """A module that stands in for trackio and keeps the runs that were begun."""
    module = types.ModuleType("trackio")
    runs = []

    def init(**options):
        runs.append(TrackioRun(options))
        return runs[-1]

    vars(module).update(runs=runs, init=init)
    module.__spec__ = ModuleSpec("trackio", None)
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setattr(trackers, "Remote", lambda name, log: Trackio(log))
    return module


def test_a_run_in_trackio_is_named_grouped_and_described(ratrain, home, trackio):
    keys = ["--set", "log.project=ours", "--set", "log.study=pilot"]
    code, _, err = ratrain(*tracked("trackio"), *keys, "--json")
    assert code == Exit.DONE, err
    run, (made,) = run_of(home), trackio.runs
    told, (started,) = made.options, stated(run, "RunStarted")
    assert (told["project"], told["group"], told["resume"]) == ("ours", "pilot", "allow")
    assert told["name"] == f"v1/s1 {(run / 'trackio' / 'id').read_text()[-6:]}"
    assert told["config"]["recipe_hash"] == started["recipe_hash"]
    assert told["config"]["patch"]["unified_ra"]["rank"] == 4
    assert not (told["auto_log_cpu"] or told["auto_log_gpu"] or told["embed"])
    assert made.finished
    assert "trackio: trackio show --project ours" in [line["message"] for line in stated(run, "Notice")]
    losses = [(step, row["train/loss"]) for step, row in made.rows if "train/loss" in row]
    assert losses == list(enumerate([loss for line in stated(run, "Window") for loss in line["losses"]], start=1))
    assert made.rows[-1] == (6, {"sample": stated(run, "Sampled")[0]["text"]})


def test_a_run_that_goes_on_is_the_same_in_trackio_and_a_fresh_one_is_not(ratrain, home, trackio, after_step):
    with after_step(2, stop):
        assert ratrain(*tracked("trackio"))[0] == Exit.PREEMPTED
    assert ratrain(*tracked("trackio"))[0] == Exit.DONE
    assert ratrain(*tracked("trackio"), "--fresh", "--set", "log.run_name=again")[0] == Exit.DONE
    first, second, fresh = (made.options["name"] for made in trackio.runs)
    assert first == second
    assert fresh.startswith("again ")
    assert fresh[-6:] != first[-6:]


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_the_real_trackio_has_the_losses(home):
    """In a process of its own: it leaves hooks behind in the one that it is imported into."""
    environment = {**os.environ, "TRACKIO_DIR": str(home / "trackio"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ratrain", *tracked("trackio"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == Exit.DONE, done.stderr
    run = run_of(home)
    assert not warnings(run)
    with sqlite3.connect(home / "trackio" / "ratrain.db") as base:
        rows = [(step, json.loads(values)) for step, values in base.execute("SELECT step, metrics FROM metrics")]
    shown = sorted((step, values["train/loss"]) for step, values in rows if "train/loss" in values)
    losses = [loss for line in stated(run, "Window") for loss in line["losses"]]
    assert shown == list(enumerate(losses, start=1))
