"""Stick-breaking against a stick that is broken one key at a time."""

import pytest
import torch


def broken(scores):
    """Probabilities [..., T, T]: the newest earlier key takes its part first, the next of what is left."""
    probs = torch.zeros_like(scores)
    for i in range(scores.shape[-1]):
        left = torch.ones_like(scores[..., i, 0])
        for j in reversed(range(i)):
            probs[..., i, j] = left * scores[..., i, j].sigmoid()
            left = left * (1 - scores[..., i, j].sigmoid())
    return probs


@pytest.mark.parametrize("s", [1.0, 0.4])
def test_every_key_takes_its_part_of_what_nearer_ones_left(block, x, heads, weights, merged, equal, s):
    attn = block("stick_breaking").attn
    attn.core.s.fill_(s)
    q, k, v = heads(attn, x)
    probs = (1 - s) * weights(q @ k.mT, 8) + s * broken(q @ k.mT / 8**0.5)
    equal(attn, attn(x, None)[0], merged(attn, probs @ v))


def test_the_first_token_attends_to_nothing(block):
    core = block("stick_breaking").attn.core
    assert not core(*torch.randn(3, 1, 2, 5, 8, dtype=torch.float64).unbind())[:, :, 0].any()


def test_large_scores_and_their_gradients_stay_finite(block):
    core = block("stick_breaking").attn.core
    q = (1e4 * torch.randn(1, 2, 9, 8, dtype=torch.float64)).requires_grad_()
    y = core(q, q, q)
    assert y.isfinite().all()
    assert torch.autograd.grad(y.sum(), q)[0].isfinite().all()
