"""Contracts on causality: no output may depend on later tokens or other sequences, no gradient on later tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ratrain.config.schema import Manifest
from ratrain.contracts.perturbation import batch_leak, differs, suffix_leak
from ratrain.contracts.registry import contract
from ratrain.contracts.states import STATES, State, logits_of, tokens_of
from ratrain.model.gpt2 import GPT2

# lengths at, below and above powers of two, up to the whole context, by `State.shaken`
_LENGTHS = {False: (8, 64, 65, 256), True: (31, 129, 255)}
_ROUNDING = 1e-10  # relative to the largest value: another order of summation, in float64


@contract
def no_position_sees_a_later_token(manifest: Manifest) -> None:
    for state in STATES:
        _look_ahead(manifest, state, _LENGTHS[state.shaken])


def no_position_sees_a_later_token_in_its_own_context(manifest: Manifest) -> None:
    """Checks causality at the manifest's block size and at one less; unregistered, since these may be long."""
    length = manifest.model.block_size
    for training in (True, False):
        _look_ahead(manifest, State(training, activation=0.5, shaken=True), (length - 1, length))


def _look_ahead(manifest: Manifest, state: State, lengths: Sequence[int]) -> None:
    model = state.of(manifest)
    for length in lengths:
        tokens = tokens_of(manifest, 1, length)
        leak = suffix_leak(partial(logits_of, model), tokens, manifest.model.vocab_size)
        assert leak is None, f"{state}, {leak}"


@contract
def no_sequence_sees_another(manifest: Manifest) -> None:
    tokens = tokens_of(manifest, 4, 65)
    for state in STATES:
        model = state.of(manifest)
        for rows in (2, 4):
            leak = batch_leak(partial(logits_of, model), tokens[:rows], manifest.model.vocab_size)
            assert not leak, f"{state}: changing one sequence of {rows} changes the output of another"
        if not state.dropout:  # the dropout mask depends on the shape of the batch
            whole, alone = logits_of(model, tokens)[:1], logits_of(model, tokens[:1])
            unlike = differs(whole, alone, _ROUNDING * float(alone.abs().max())).any()
            assert not unlike, f"{state}: a sequence alone has another output than beside three others"


@contract
def no_gradient_comes_from_a_later_token(manifest: Manifest) -> None:
    length, vocab = 65, manifest.model.vocab_size
    model = State(training=True, activation=0.5, shaken=True).of(manifest)
    tokens = tokens_of(manifest, 2, length)
    for at in (1, length // 2, length - 1):
        edited = tokens.clone()
        edited[:, at:] = (edited[:, at:] + 1) % vocab
        before, after = (_gradients(model, one, at) for one in (tokens, edited))
        for name, gradient in before.items():
            bound = _ROUNDING * float(gradient.abs().max().clamp(min=1e-30))
            assert not differs(gradient, after[name], bound).any(), (
                f"{name}: its gradient from the outputs before token {at} changes with the tokens from {at} on"
            )


def _gradients(model: GPT2, tokens: Tensor, until: int) -> dict[str, Tensor]:
    """Returns each parameter's gradient of a fixed random projection of the outputs before `until`."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    seen = model.logits(tokens)[:, :until]
    noise = torch.randn(seen.shape, generator=torch.Generator().manual_seed(0), dtype=seen.dtype)
    (seen * noise).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
