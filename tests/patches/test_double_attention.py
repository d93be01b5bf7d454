"""Double attention against its two softmaxes."""

import pytest


@pytest.mark.parametrize("s", [1.0, 0.4])
def test_both_directions_have_a_softmax_of_their_own(block, x, heads, weights, merged, equal, s):
    attn = block("double_attention").attn
    attn.core.s.fill_(s)
    q, k, v = heads(attn, x)
    y = weights(q @ k.mT, 8) @ v + s * weights(k @ q.mT, 8) @ v
    equal(attn, attn(x, None)[0], merged(attn, y))
