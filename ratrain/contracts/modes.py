"""Contracts on state: train and eval mode agree, calls have no side effects, checkpoints are complete."""

from __future__ import annotations

import torch

from ratrain.config.schema import Manifest
from ratrain.contracts.registry import contract
from ratrain.contracts.states import State, logits_of, loss_of, tokens_of, trained
from ratrain.model.build import build

_ROUNDING = 1e-10  # in float64: the modes may sum in another order


@contract
def loading_a_checkpoint_restores_the_outputs(manifest: Manifest) -> None:
    tokens = tokens_of(manifest, 2, 65)
    first, other = (build(m).eval() for m in (manifest, _reseeded(manifest)))
    assert not torch.equal(logits_of(first, tokens), logits_of(other, tokens)), "the seed does not change the weights"
    model = trained(manifest)
    other.load_state_dict(model.state_dict())
    for training in (True, False):
        before, after = (logits_of(one.train(training), tokens) for one in (model, other))
        where = "training" if training else "evaluating"
        assert torch.equal(before, after), f"{where}: the outputs of a trained model differ after loading"


@contract
def evaluating_computes_what_was_trained(manifest: Manifest) -> None:
    model = trained(manifest).double()
    tokens = tokens_of(manifest, 2, 129)
    training, evaluating = (logits_of(model.train(mode), tokens) for mode in (True, False))
    torch.testing.assert_close(
        training, evaluating, rtol=0, atol=_ROUNDING * float(evaluating.abs().max()),
        msg=lambda text: f"without dropout, after three steps, training and evaluating differ: {text}",
    )  # fmt: skip


@contract
def a_call_leaves_nothing_behind(manifest: Manifest) -> None:
    tokens, others = tokens_of(manifest, 2, 65), tokens_of(manifest, 5, 40)[2:]
    for state in (State(training=True), State(training=True, dropout=0.1), State(training=False)):
        model = state.of(manifest)
        before, kept = logits_of(model, tokens), {n: t.clone() for n, t in model.state_dict().items()}
        logits_of(model.eval(), others)
        loss_of(model.train(), manifest).backward()
        model.train(state.training)
        model.zero_grad(set_to_none=True)
        again = logits_of(model, tokens)
        assert torch.equal(before, again), f"{state}: the same tokens give other outputs after other calls"
        moved = [n for n, t in model.state_dict().items() if not torch.equal(t, kept[n])]
        assert not moved, f"{state}: calls change {', '.join(moved)}; state that moves does so in settle(), once a step"
    drawn = torch.get_rng_state()
    with torch.no_grad():
        model.logits(tokens)
    assert torch.equal(drawn, torch.get_rng_state()), "evaluating draws random numbers: noise must ask self.training"


def _reseeded(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"seed": manifest.seed.model_copy(update={"init": 2})})
