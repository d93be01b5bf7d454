"""Soft cap against its scores written out."""

import pytest
import torch


@pytest.mark.parametrize("s", [1.0, 0.4])
def test_scores_are_capped_before_the_softmax(block, x, heads, weights, merged, equal, s):
    attn = block("soft_cap", cap=0.7).attn
    attn.core.s.fill_(s)
    q, k, v = heads(attn, x)
    scores = q @ k.mT / 8**0.5
    capped = (1 - s) * scores + s * 0.7 * torch.tanh(scores / 0.7)
    equal(attn, attn(x, None)[0], merged(attn, weights(capped, 1) @ v))


def test_a_cap_far_above_the_scores_leaves_attention_as_it_is(block, x, heads, weights, merged):
    attn = block("soft_cap", cap=1e6).attn
    q, k, v = heads(attn, x)
    torch.testing.assert_close(attn(x, None)[0], merged(attn, weights(q @ k.mT, 8) @ v))
