"""Scalable softmax against its scores written out, on learned positions and on RoPE."""

import math

import pytest
import torch

from ratrain.errors import ManifestError


@pytest.mark.parametrize("pos", ["learned", "rope"])
@pytest.mark.parametrize("s", [1.0, 0.4])
def test_scores_grow_with_the_logarithm_of_the_keys_seen(block, x, heads, weights, merged, equal, pos, s):
    attn = block("scalable_softmax", f"model.pos={pos}").attn
    attn.pos.s.fill_(s)
    q, k, v = heads(attn, x)
    q, k = attn.pos.inner(q, k, 0)  # what the base does with positions
    logs = torch.arange(1, x.shape[1] + 1, dtype=x.dtype).log()[:, None]
    scores = (1 - s + s * attn.pos.w[:, None, None] * logs) * (q @ k.mT)
    equal(attn, attn(x, None)[0], merged(attn, weights(scores, 8) @ v))


def test_a_token_is_scaled_by_its_place_in_the_context(block):
    pos = block("scalable_softmax").attn.pos
    q, k = torch.randn(2, 1, 2, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(pos(q[:, :, 4:], k[:, :, 4:], 4)[0], pos(q, k, 0)[0][:, :, 4:])


def test_on_average_it_starts_with_the_scores_of_the_base(block):
    pos = block("scalable_softmax", "model.block_size=1024").attn.pos
    pos.reset_parameters(torch.Generator())
    assert pos.w[0].item() == pytest.approx(1024 / sum(math.log(n) for n in range(1, 1025)))
    assert round(pos.w[0].item(), 3) == 0.168


def test_a_context_of_one_token_is_refused(block):
    with pytest.raises(ManifestError, match="more than one token"):
        block("scalable_softmax", "model.block_size=1")
