"""A run at the tiny scale: what it states, how it ends, and that an interruption changes no bit of it."""

from __future__ import annotations

import itertools
import math
import os
import signal

import pytest
import torch

from ratrain.engine.divergence import Divergence
from ratrain.engine.engine import Engine
from ratrain.engine.progress import Progress
from ratrain.engine.step import TrainStep
from ratrain.errors import DataError, DivergedError, PreemptedError
from ratrain.events import Evaluated, Notice, Resumed, RunEnded, RunStarted, Saved, Window
from ratrain.storage.checkpoint import listed, load, load_newest

LONG = (
    "model.dropout=0.1",
    "train.budget.steps=12",
    "log.every=5",
    "eval.every=4",
    "eval.windows=3",
    "checkpoint.every=6",
)


def run(manifest, folder, *, before_batch=None, emit=None):
    """The events of one session; `before_batch(step)` is called before each step draws its batch."""
    seen = []

    def listen(event):
        seen.append(event)
        if emit:
            emit(event)

    engine = Engine(manifest, checkpoints=folder, device=torch.device("cpu"), emit=listen)
    if before_batch:
        draw = engine.setup.sampler.batch
        engine.setup.sampler.batch = lambda step: (before_batch(step), draw(step))[1]
    try:
        engine.run()
    except (PreemptedError, DivergedError) as error:
        seen.append(error)
    return seen


def of(kind, seen):
    return [event for event in seen if isinstance(event, kind)]


def losses_by_step(seen):
    found = {}
    for window in of(Window, seen):
        first = window.step - len(window.losses) + 1
        for step, loss in enumerate(window.losses, first):
            assert step not in found, f"step {step} is stated twice"
            found[step] = loss
    return found


def newest(folder):
    found, _, _ = load_newest(folder)
    assert found
    return found


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def stop_at(step, number=signal.SIGTERM):
    return lambda at: os.kill(os.getpid(), number) if at == step else None


@pytest.fixture(scope="module")
def unbroken(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return run(tiny("v1", *LONG), folder), folder


@pytest.mark.parametrize("at", [0, 1, 4, 5, 6, 8, 11])
def test_a_run_that_was_stopped_and_resumed_is_the_unbroken_one_to_the_bit(tiny, tmp_path, unbroken, at):
    manifest = tiny("v1", *LONG)
    first = run(manifest, tmp_path, before_batch=stop_at(at))
    if at < 11:  # the last step is finished, and the run with it
        assert isinstance(first[-1], PreemptedError)
        assert newest(tmp_path).step == at + 1
        first += run(manifest, tmp_path)
    whole, folder = unbroken
    assert losses_by_step(first) == losses_by_step(whole)
    assert [(e.step, e.loss) for e in of(Evaluated, first)] == [(e.step, e.loss) for e in of(Evaluated, whole)]
    ours, theirs = newest(tmp_path), newest(folder)
    assert same(ours.model, theirs.model)
    assert same(ours.optimizer, theirs.optimizer)


def test_many_stops_change_nothing_either(tiny, tmp_path, unbroken):
    manifest, seen = tiny("v1", *LONG), []
    for at in (0, 2, 3, 7):
        seen += run(manifest, tmp_path, before_batch=stop_at(at))
    seen += run(manifest, tmp_path)
    assert losses_by_step(seen) == losses_by_step(unbroken[0])
    assert same(newest(tmp_path).model, newest(unbroken[1]).model)


def test_a_killed_run_goes_on_from_its_last_checkpoint_to_the_same_bits(tiny, tmp_path, unbroken):
    manifest = tiny("v1", *LONG)

    def kill(step):
        if step == 9:
            raise SystemExit

    with pytest.raises(SystemExit):
        run(manifest, tmp_path, before_batch=kill)
    seen = run(manifest, tmp_path)
    assert of(Resumed, seen)[0].step == 6
    assert same(newest(tmp_path).model, newest(unbroken[1]).model)


def test_a_compiled_run_resumes_to_the_same_bits(tiny, tmp_path):
    manifest = tiny("v1", *LONG, "compile.scope=block")
    run(manifest, tmp_path / "whole")
    run(manifest, tmp_path / "parts", before_batch=stop_at(7))
    torch._dynamo.reset()
    run(manifest, tmp_path / "parts")
    assert same(newest(tmp_path / "whole").model, newest(tmp_path / "parts").model)


def test_narrow_masters_survive_a_stop(tiny, tmp_path):
    manifest = tiny("v1", *LONG, "train.precision=bf16")
    run(manifest, tmp_path / "whole")
    run(manifest, tmp_path / "parts", before_batch=stop_at(7))
    run(manifest, tmp_path / "parts")
    assert same(newest(tmp_path / "whole").model, newest(tmp_path / "parts").model)
    assert {t.dtype for t in newest(tmp_path / "parts").model.values()} == {torch.float32}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_each_polite_signal_finishes_the_step_saves_and_says_so(tiny, tmp_path, number):
    before = signal.getsignal(number)
    seen = run(tiny("v1", *LONG), tmp_path, before_batch=stop_at(2, number))
    assert f"stopped by {number.name} after step 3" in str(seen[-1])
    assert [(e.status, e.step) for e in of(RunEnded, seen)] == [("preempted", 3)]
    assert signal.getsignal(number) is before


def test_every_step_is_stated_once_and_everything_due_happens(unbroken):
    seen, _ = unbroken
    assert list(losses_by_step(seen)) == list(range(1, 13))
    assert [e.step for e in of(Evaluated, seen)] == [4, 8, 12]
    assert [e.step for e in of(Saved, seen)] == [6, 12]
    assert [e.step for e in of(Window, seen)] == [4, 5, 6, 8, 10, 12]
    assert [(e.status, e.step, e.loss) for e in of(RunEnded, seen)] == [("done", 12, of(Evaluated, seen)[-1].loss)]


def test_windows_state_the_schedule_and_the_share_of_the_budget(tiny, tmp_path):
    seen = run(tiny("gpt2", "schedule.kind=linear", "schedule.warmup={steps=0}", "train.budget.steps=10"), tmp_path)
    for window in of(Window, seen):
        assert window.spent == window.step / 10
        assert window.tokens == window.step * 4 * 32
        assert window.lr == pytest.approx(3e-3 * (1 - 0.9 * window.step / 10))


def test_training_beats_knowing_nothing(tiny, tmp_path):
    seen = run(tiny("v1", "train.budget.steps=60", "schedule.lr=1e-2"), tmp_path)
    (started,), losses = of(RunStarted, seen), losses_by_step(seen)
    assert abs(losses[1] - started.baselines["uniform"]) < 0.1
    (ended,) = of(RunEnded, seen)
    assert ended.loss is not None
    assert ended.loss < started.baselines["unigram"] + 0.5


def test_a_budget_in_seconds_ends_when_it_is_spent(tiny, tmp_path):
    seen = run(tiny("gpt2", "train.budget.seconds=0.5"), tmp_path)
    windows = of(Window, seen)
    assert of(RunEnded, seen)[0].status == "done"
    assert sum(w.seconds for w in windows[:-1]) < 0.5 <= sum(w.seconds for w in windows)
    assert windows[-1].spent == 1
    assert all(a.spent <= b.spent for a, b in itertools.pairwise(windows))


def test_a_run_that_stays_broken_gives_up_and_says_what_to_do(tiny, tmp_path):
    seen = run(tiny("gpt2", "schedule.lr=1e30", "train.max_skips=3", "optim.clip=0", "checkpoint.every=0"), tmp_path)
    assert "4 steps in a row" in str(seen[-1]) or "5 steps in a row" in str(seen[-1])
    assert isinstance(seen[-1], DivergedError)
    assert [e.status for e in of(RunEnded, seen)] == ["diverged"]
    skipped = [norm for window in of(Window, seen) for norm in window.grad_norms if not math.isfinite(norm)]
    assert sum(window.skipped for window in of(Window, seen)) == len(skipped) > 3


WILD = ("train.budget.tokens=1280", "schedule.lr=1e30", "train.max_skips=50")


def test_a_run_whose_validation_loss_is_not_finite_has_diverged_and_saves_nothing(tiny, tmp_path):
    seen = run(tiny("gpt2", *WILD), tmp_path)
    assert isinstance(seen[-1], DivergedError)
    assert "the validation loss at step 10 is nan, 9 steps had no finite gradient; lower schedule.lr" in str(seen[-1])
    assert [e.status for e in of(RunEnded, seen)] == ["diverged"]
    assert not [*tmp_path.glob("*")]


@pytest.mark.parametrize("asynchronous", ["on", "off"])
def test_a_weight_that_is_not_finite_ends_the_run_and_the_last_finite_checkpoint_stays(
    tiny, tmp_path, monkeypatch, asynchronous
):
    keys = ("checkpoint.every=2", "checkpoint.keep=2", "eval.every=0", f"checkpoint.asynchronous={asynchronous}")
    manifest = tiny("gpt2", "train.budget={steps=6}", *keys)
    act = TrainStep.__call__

    def broken(self, tokens, targets):
        result = act(self, tokens, targets)
        broken.steps += 1
        if broken.steps == 4:
            with torch.no_grad():
                self.parameters[0].view(-1)[0] = float("inf")
        return result

    broken.steps = 0
    monkeypatch.setattr(TrainStep, "__call__", broken)
    seen = run(manifest, tmp_path)
    assert isinstance(seen[-1], DivergedError)
    assert "weight: not finite at step 4" in str(seen[-1])
    assert [path.name for path in listed(tmp_path)] == ["step-00000002"]
    assert load(tmp_path / "step-00000002").step == 2


def test_a_run_most_of_whose_steps_were_skipped_has_diverged(tiny, tmp_path):
    wild = ("train.budget.tokens=1280", "schedule.lr=1e4", "optim.clip=0", "train.max_skips=50")
    seen = run(tiny("gpt2", *wild), tmp_path)
    assert isinstance(seen[-1], DivergedError)
    assert "the gradient was not finite in 9 of 10 steps, more than half of them" in str(seen[-1])
    assert [e.status for e in of(RunEnded, seen)] == ["diverged"]


def test_skipped_steps_are_counted_across_a_restart():
    progress = Progress(total_steps=4, steps=4)
    divergence = Divergence(max_skips=3, progress=progress)
    divergence.count([1.0, float("nan"), float("inf"), 1.0])
    assert (progress.skips_in_a_row, progress.skipped) == (0, 2)
    divergence.check_share()  # half of them is not most of them
    progress.steps = 3
    with pytest.raises(DivergedError, match="in 2 of 3 steps"):
        divergence.check_share()


def test_a_damaged_checkpoint_is_passed_over_and_named(tiny, tmp_path):
    manifest = tiny("v1", *LONG)
    run(manifest, tmp_path)
    (tmp_path / "step-00000012" / "model.safetensors").write_bytes(b"")
    (resumed,) = of(Resumed, run(manifest, tmp_path))
    assert resumed.step == 6
    assert "step-00000012" in resumed.skipped[0]


def test_a_checkpoint_of_another_run_is_refused(tiny, tmp_path):
    run(tiny("v1", *LONG), tmp_path)
    with pytest.raises(DataError, match="another manifest"):
        run(tiny("v1", *LONG, "schedule.lr=1e-4"), tmp_path)


def test_another_number_of_threads_is_told(tiny, tmp_path):
    run(tiny("v1", *LONG), tmp_path, before_batch=stop_at(2))
    torch.set_num_threads(2)
    try:
        seen = run(tiny("v1", *LONG), tmp_path)
    finally:
        torch.set_num_threads(1)
    (notice,) = of(Notice, seen)
    assert notice.level == "warning"
    assert "threads" in notice.message


def test_checkpoints_written_beside_the_steps_are_those_of_a_run_that_waits(tiny, tmp_path, unbroken):
    seen = run(tiny("v1", *LONG, "checkpoint.asynchronous=on", "checkpoint.keep=9"), tmp_path / "beside")
    waiting = run(tiny("v1", *LONG, "checkpoint.asynchronous=off", "checkpoint.keep=9"), tmp_path / "waiting")
    assert losses_by_step(seen) == losses_by_step(unbroken[0])
    assert [e.step for e in of(Saved, seen)] == [e.step for e in of(Saved, waiting)] == [6, 12]
    for name in ("step-00000006", "step-00000012"):
        beside, alone = (load(tmp_path / folder / name) for folder in ("beside", "waiting"))
        assert same(beside.model, alone.model)
        assert same(beside.optimizer, alone.optimizer)


def test_cadence_changes_nothing_that_is_trained(tiny, tmp_path, unbroken):
    run(tiny("v1", *LONG, "log.every=12", "eval.every=0", "checkpoint.every=0"), tmp_path)
    assert same(newest(tmp_path).model, newest(unbroken[1]).model)
