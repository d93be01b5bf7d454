"""Sinks against the softmax with one more term in its denominator."""

import pytest
import torch


@pytest.mark.parametrize("s", [1.0, 0.4])
def test_the_sink_takes_its_share_of_every_denominator(block, x, heads, merged, equal, s):
    attn = block("sinks").attn
    attn.core.s.fill_(s)
    q, k, v = heads(attn, x)
    mass = (q @ k.mT / 8**0.5).exp().tril()
    probs = mass / (mass.sum(-1, keepdim=True) + s * attn.core.b.exp()[:, None, None])
    equal(attn, attn(x, None)[0], merged(attn, probs @ v))


def test_it_starts_as_softmax_off_by_one(block):
    core = block("sinks").attn.core
    core.reset_parameters(torch.Generator())
    v = torch.randn(1, 2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means = v.cumsum(2) / torch.arange(2, 7, dtype=torch.float64)[:, None]  # of the values and one zero
    torch.testing.assert_close(core(0 * v, v, v), means)
