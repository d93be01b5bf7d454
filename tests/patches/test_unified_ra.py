"""Unified RA against its definition, and against the plain attention that it is a relabelling of."""

import pytest
import torch

from ratrain.errors import ManifestError
from ratrain.model.gpt2 import NoGate


@pytest.mark.parametrize("gates", ["head", "layer"])
@pytest.mark.parametrize("s", [1.0, 0.3])
def test_scores_are_two_sums_over_channels(block, x, heads, weights, merged, equal, gates, s):
    attn = block("unified_ra", rank=3, gates=gates).attn
    attn.score.s.fill_(s)
    q, k, v = heads(attn, x)
    w_std, w_rec = (1 + s * (w - 1) for w in (attn.score.w_std, attn.score.w_rec))
    products = q[..., :, None, :] * k[..., None, :, :]  # [B, H, T, T, D]
    scores = w_std[:, None, None] * products[..., :5].sum(-1) + w_rec[:, None, None] * products[..., 5:].sum(-1)
    equal(attn, attn(x, None)[0], merged(attn, weights(scores, 8) @ v))


def test_it_is_plain_attention_with_scaled_query_rows(block, x):
    attn = block("unified_ra", rank=3).attn
    gated = attn(x, None)[0]
    with torch.no_grad():
        gate = attn.score().flatten()
        attn.qkv.weight[: len(gate)] *= gate[:, None]
        attn.qkv.bias[: len(gate)] *= gate
    attn.score = NoGate()
    torch.testing.assert_close(attn(x, None)[0], gated, rtol=0, atol=1e-12)


def test_a_rank_of_the_whole_head_is_refused(block):
    with pytest.raises(ManifestError, match="rank must be below head_dim = 8, got 8"):
        block("unified_ra", rank=8)
