"""Weight pruning through whole runs: resumed, compiled, told, examined."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from ratrain.engine.engine import Engine
from ratrain.engine.parts.pruning import Pruning
from ratrain.errors import DataError, PreemptedError
from ratrain.events import Compiled, OptimizerTold, Pruned, PruningBegan, PruningEvaluated, Window
from ratrain.recipe.prune.masks import bytes_as_rows, unpack
from ratrain.recipe.prune.pruner import masks_of
from ratrain.registry import optim_kinds
from ratrain.storage.checkpoint import listed, load

SHORT = ("train.budget.steps=24", "eval.every=6", "checkpoint.every=6", "log.every=4", "prune.every=3")
KINDS = {
    "magnitude": ("prune.kind=magnitude",),
    "uniform": ("prune.kind=magnitude", "prune.layers=uniform"),
    "movement": ("prune.kind=movement", "prune.embedding=true"),
    "state": ("prune.kind=state", "prune.score=bitter4"),
    "regrow": ("prune.kind=magnitude", "prune.regrow=0.1"),
}


def run(manifest, folder, *, stop_at=None):
    seen = []
    engine = Engine(manifest, checkpoints=folder / "checkpoints", device=torch.device("cpu"), emit=seen.append)
    batch = engine._batch

    def counted(position):
        if position == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(position)

    engine._batch = counted
    if stop_at is None:
        engine.run()
    else:
        with pytest.raises(PreemptedError):
            engine.run()
    return seen


def newest(folder):
    return load(listed(folder / "checkpoints")[0])


def of(kind, seen):
    return [event for event in seen if isinstance(event, kind)]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def pruned(tiny, *overrides, target=0.6):
    return tiny("gpt2", *SHORT, f"prune.target={target}", *overrides)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_stopped_on_the_way_ends_with_the_same_bits(tiny, tmp_path, kind):
    manifest = pruned(tiny, *KINDS[kind], "prune.start={steps=7}")  # after the first evaluation
    whole = run(manifest, tmp_path / "whole")
    parts = run(manifest, tmp_path / "parts", stop_at=10)
    parts += run(manifest, tmp_path / "parts")
    a, b = newest(tmp_path / "whole"), newest(tmp_path / "parts")
    assert same(a.model, b.model)
    assert same(a.optimizer, b.optimizer)
    looks = {e.step: e for e in of(Pruned, parts)}
    assert list(looks.values()) == of(Pruned, whole)
    ends = [of(PruningEvaluated, seen)[-1] for seen in (whole, parts)]
    told = [(e.loss, e.loss_dense_best, e.loss_target_best, e.zeros) for e in ends]
    assert told[0] == told[1]
    assert None not in told[0]


@pytest.mark.parametrize("optim", optim_kinds())
def test_every_optimizer_resumes_to_the_same_bits(tiny, tmp_path, optim):
    keys = () if optim == "adamwprune" else ("prune.kind=magnitude",)
    keys += ("prune.kind=state", "prune.score=bitter0") if optim == "adamwprune" else ()
    manifest = pruned(tiny, f"optim.kind={optim}", *keys)
    run(manifest, tmp_path / "whole")
    run(manifest, tmp_path / "parts", stop_at=10)
    run(manifest, tmp_path / "parts")
    a, b = newest(tmp_path / "whole"), newest(tmp_path / "parts")
    assert same(a.model, b.model)
    assert same(a.optimizer, b.optimizer)
    weight, mask = a.model["blocks.0.attn.qkv.weight"], masks_of(a.optimizer)["blocks.0.attn.qkv.weight"]
    gone = unpack(mask, weight.shape, bytes_as_rows(weight.device)) == 0
    assert gone.any()
    assert not weight[gone].any()


def test_what_is_told_at_the_end_is_what_the_weights_hold(tiny, tmp_path):
    seen = run(pruned(tiny, *KINDS["state"]), tmp_path)
    (began,), (end,) = of(PruningBegan, seen), of(PruningEvaluated, seen)
    weights = newest(tmp_path).model
    for name, (zeros, count) in end.zeros.items():
        assert (int((weights[name] == 0).sum()), weights[name].numel()) == (zeros, count)
    assert sum(end.zeros[name][0] for name in began.tensors) == int(0.6 * began.weights)
    assert end.zeros["wte.weight"][0] == 0
    assert end.not_zero == 0
    assert end.loss == end.loss_reloaded
    assert end.sparsity == pytest.approx(0.6, abs=1 / began.weights)
    assert end.bytes_packed < 0.6 * end.bytes_dense + 4 * weights["wte.weight"].numel()


def test_the_best_losses_are_those_of_dense_weights_and_of_the_target(tiny, tmp_path):
    ramp = ("prune.start={steps=5}", "prune.end={steps=15}")
    manifest = pruned(tiny, *KINDS["magnitude"], "eval.every=1", *ramp)
    seen = run(manifest, tmp_path)
    (end,) = of(PruningEvaluated, seen)
    losses = {event.step: event.loss for event in seen if type(event).__name__ == "Evaluated"}
    assert end.loss_dense_best == min(loss for step, loss in losses.items() if step < 6)  # looks at 6, 9, 12, 15
    assert end.loss_target_best == min(loss for step, loss in losses.items() if step >= 15)


def test_a_loss_on_the_way_to_the_target_is_the_best_of_nothing(tiny, tmp_path):
    engine = Engine(pruned(tiny, *KINDS["magnitude"]), checkpoints=tmp_path, device=torch.device("cpu"), emit=print)
    pruning = engine.part(Pruning)
    for sparsity, loss in ((0.0, 3.0), (0.0, 4.0), (0.3, 1.0), (0.598, 1.0), (0.5995, 2.0), (0.6, 2.5)):
        pruning.pruner.pruned = round(sparsity * pruning.pruner.weights)
        pruning.after_evaluation(engine.progress.now, loss)
    assert pruning.best == {"dense": 3.0, "target": 2.0}


def test_the_target_is_reached_at_the_end_of_the_ramp_though_it_falls_between_looks(tiny, tmp_path):
    looks = of(Pruned, run(pruned(tiny, *KINDS["magnitude"], "prune.end={steps=20}"), tmp_path))
    assert [look.step for look in looks] == [3, 6, 9, 12, 15, 18, 20]
    assert [look.reached for look in looks] == [False] * 6 + [True]


SPAM = ("optim.kind=adamwspam", "optim.interval=8", "optim.warmup=3", "optim.grace=2", "optim.theta=1.5")


def test_a_budget_in_seconds_is_pruned_to_its_target_though_windows_are_long(tiny, tmp_path):
    keys = ("train.budget={seconds=1.0}", "log.every=1000", "eval.every=0", "checkpoint.every=0", "prune.every=3")
    seen = run(tiny("gpt2", *keys, *KINDS["magnitude"], "prune.target=0.6"), tmp_path)
    (end,), windows = of(PruningEvaluated, seen), of(Window, seen)
    assert [window.step for window in windows][:4] == [1, 2, 4, 8]
    assert end.reached
    assert end.sparsity == pytest.approx(0.6, abs=1e-4)
    assert len({look.sparsity for look in of(Pruned, seen)}) > 3


def test_nothing_recompiles_and_the_windows_tell_how_far_it_is(tiny, tmp_path):
    # warm-up, resets, cuts, ramp and hold are all within these steps
    manifest = pruned(tiny, *KINDS["state"], *SPAM, "compile.scope=block", "compile.backend=aot_eager")
    seen = run(manifest, tmp_path)
    windows = of(Window, seen)
    assert {window.recompiles for window in windows} == {0}
    assert windows[-1].graphs == sum(event.expected for event in of(Compiled, seen))
    told = [window.sparsity for window in windows]
    assert told == sorted(told)
    assert told[-1] == pytest.approx(0.6, abs=1e-4)


def test_what_the_optimizer_counts_is_told_once_also_after_a_stop(tiny, tmp_path):
    manifest = tiny("gpt2", *SHORT[:4], *SPAM)
    whole = of(OptimizerTold, run(manifest, tmp_path / "whole"))
    parts = of(OptimizerTold, [*run(manifest, tmp_path / "parts", stop_at=10), *run(manifest, tmp_path / "parts")])
    for told in (whole, parts):
        assert sum(event.counts.get("resets", 0) for event in told) == 2  # before the 9th and 17th step
        assert sum(event.counts.get("clipped", 0) for event in told) == told[-1].totals["clipped"] > 0
    assert whole[-1].totals == parts[-1].totals


def test_an_average_that_is_evaluated_is_as_sparse_as_the_weights(tiny, tmp_path, monkeypatch):
    zeros, manifest = [], pruned(tiny, *KINDS["magnitude"], "eval.ema=0.9")

    def counting(engine, evaluate=Engine._evaluate):
        losses = engine.evaluator.losses

        def seen():
            name = engine.part(Pruning).pruner.names[0]
            zeros.append(int((engine.precision.masters[name] == 0).sum()))
            return losses()

        engine.evaluator.losses = seen
        evaluate(engine)
        engine.evaluator.losses = losses

    monkeypatch.setattr(Engine, "_evaluate", counting)
    run(manifest, tmp_path)
    final = newest(tmp_path).model["blocks.0.attn.qkv.weight"]
    assert zeros[-1] == int((final == 0).sum()) > 0


def test_a_checkpoint_of_a_run_without_pruning_is_not_gone_on_from(tiny, tmp_path):
    run(tiny("gpt2", "train.budget.steps=4"), tmp_path)
    manifest = tiny("gpt2", "train.budget.steps=4", "prune.kind=magnitude", "prune.target=0.5")
    with pytest.raises(DataError, match="another manifest"):
        run(manifest, tmp_path)


def test_the_folder_holds_a_summary(trained):
    folder = trained("gpt2", "train.budget.steps=10", "prune.kind=magnitude", "prune.target=0.5", "prune.every=2")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 10
    assert summary["status"] == "done"
    assert summary["pruning"]["loss"] == summary["pruning"]["loss_reloaded"]
    assert summary["validation_loss"] == summary["pruning"]["loss"]
    assert summary["pruning"]["sparsity"] == pytest.approx(0.5, abs=1e-4)
