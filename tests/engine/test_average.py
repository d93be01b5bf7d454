"""The averaged weights are the ones that the definition gives, and nothing but the evaluation sees them."""

from __future__ import annotations

import pytest
import torch

from ratrain.engine.engine import Engine
from ratrain.engine.parts.average import Average
from ratrain.engine.step import Precision
from ratrain.events import Evaluated, Window
from ratrain.model.build import build
from ratrain.storage.checkpoint import load_newest

KEYS = ("train.budget.steps=12", "eval.every=4", "eval.windows=3", "checkpoint.every=6", "log.every=3")


def run(manifest, folder, *, until=None):
    seen = []
    engine = Engine(manifest, checkpoints=folder, device=torch.device("cpu"), emit=seen.append)
    if until is None:
        engine.run()
    else:
        with pytest.raises(Exception, match="goes on"):
            engine.run(until=until)
    return seen


def losses(seen):
    return [loss for event in seen if isinstance(event, Window) for loss in event.losses]


def evaluated(seen):
    return {event.step: event.loss for event in seen if isinstance(event, Evaluated)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_the_weighted_mean_that_is_defined(tiny, precision):
    model = build(tiny()).double()
    own = Precision(precision, model)
    average = Average(own, 0.6)
    name, weight = next(iter(own.masters.items()))
    expected, generator = weight.detach().clone(), torch.Generator().manual_seed(0)
    for step in range(1, 9):
        with torch.no_grad():
            weight.add_(torch.randn(weight.shape, generator=generator))
        average.after_step(step)
        keep = min(0.6, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * weight.detach()
    torch.testing.assert_close(average.tensors()[f"ema|{name}"], expected, rtol=0, atol=1e-13)
    own.publish()  # as a step does
    before, seen_by_model = weight.detach().clone(), model.wte.weight.detach().clone()
    with average.evaluating():
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-13)
        assert not torch.equal(model.wte.weight, seen_by_model)
    assert torch.equal(weight, before)
    assert torch.equal(model.wte.weight, seen_by_model)


def test_training_does_not_see_it_and_the_evaluation_does(tiny, tmp_path):
    plain, averaged = (run(tiny("gpt2", *KEYS, f"eval.ema={d}"), tmp_path / d) for d in ("0", "0.5"))
    assert losses(plain) == losses(averaged)
    assert set(evaluated(plain)) == set(evaluated(averaged)) == {4, 8, 12}
    assert all(evaluated(plain)[step] != evaluated(averaged)[step] for step in (4, 8, 12))


def test_it_goes_on_to_the_bit(tiny, tmp_path):
    manifest = tiny("gpt2", *KEYS, "eval.ema=0.9")
    whole = evaluated(run(manifest, tmp_path / "whole"))
    first = evaluated(run(manifest, tmp_path / "cut", until=6))
    assert first | evaluated(run(manifest, tmp_path / "cut")) == whole
    kept = [load_newest(tmp_path / name)[0] for name in ("whole", "cut")]
    assert kept[0]
    assert kept[1]
    assert all(torch.equal(kept[1].optimizer[name], tensor) for name, tensor in kept[0].optimizer.items())
    assert any(name.startswith("ema|") for name in kept[0].optimizer)
