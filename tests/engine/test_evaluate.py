"""The validation loss is the plain mean over its windows, and taking it changes nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ratrain.data.sampling import Windows
from ratrain.engine.evaluate import Evaluator
from ratrain.engine.step import Precision
from ratrain.model.build import build


def windows(count):
    return torch.randint(2048, (count, 17), generator=torch.Generator().manual_seed(0))


def evaluator_of(manifest, count, batch, dtype=torch.float32):
    model = build(manifest).to(dtype)
    return Evaluator(
        model, Windows.of_text(windows(count)), precision=Precision(manifest.train.precision, model), batch=batch
    )


@pytest.mark.parametrize(("count", "batch"), [(8, 4), (7, 4), (5, 4), (1, 4), (3, 8), (6, 1)])
def test_it_is_the_mean_over_all_windows_also_when_the_last_batch_is_short(tiny, count, batch):
    evaluator = evaluator_of(tiny(), count, batch, torch.float64)
    rows = windows(count)
    logits = evaluator.model.eval().logits(rows[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    assert evaluator() == pytest.approx(expected.item(), rel=1e-12)
    assert evaluator.tokens == rows[:, 1:].numel()
    assert torch.equal(evaluator.windows.tokens, rows)


def test_every_batch_has_one_shape(tiny):
    evaluator = evaluator_of(tiny(), 7, 4)
    shapes = []
    evaluator.model.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    evaluator()
    assert set(shapes) == {(4, 16)}


def test_it_leaves_weights_generators_and_the_training_mode_as_they_were(tiny):
    evaluator = evaluator_of(tiny("v1", "model.dropout=0.5"), 7, 4)
    weights = {name: t.clone() for name, t in evaluator.model.state_dict().items()}
    state = torch.get_rng_state()
    first = evaluator()
    assert torch.equal(state, torch.get_rng_state())
    assert evaluator() == first  # no dropout falls
    assert evaluator.model.training
    assert all(p.grad is None for p in evaluator.model.parameters())
    assert all(torch.equal(t, weights[name]) for name, t in evaluator.model.state_dict().items())


@pytest.mark.parametrize("precision", ["bf16", "amp_bf16"])
def test_it_is_taken_in_the_training_precision(tiny, precision):
    exact, narrow = evaluator_of(tiny(), 7, 4)(), evaluator_of(tiny("gpt2", f"train.precision={precision}"), 7, 4)()
    assert narrow != exact
    assert narrow == pytest.approx(exact, rel=2**-9)
