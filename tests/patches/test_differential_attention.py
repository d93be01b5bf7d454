"""Differential attention against its equation, the halves of each head cut out."""

import pytest
import torch

from ratrain.errors import ManifestError

FIRST, SECOND = [0, 1, 4, 5], [2, 3, 6, 7]  # of 8 channels: every other pair


def test_it_is_the_normed_difference_of_two_half_attentions(block, x, heads, weights, merged, equal):
    attn = block("differential_attention", start=0.6).attn
    core = attn.core
    q, k, v = heads(attn, x)
    first, second = (weights(q[..., half] @ k[..., half].mT, 4) @ v for half in (FIRST, SECOND))
    y = first - ((core.a_1 @ core.b_1).exp() - (core.a_2 @ core.b_2).exp() + 0.6) * second
    normed = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * core.weight
    equal(attn, attn(x, None)[0], merged(attn, (1 - 0.6) * normed))


def test_the_second_map_starts_near_the_share_that_it_is_given(block):
    core = block("differential_attention", start=0.6).attn.core
    core.reset_parameters(torch.Generator().manual_seed(0))
    assert abs(core.share().item() - 0.6) < 0.15


def test_heads_without_whole_pairs_in_each_half_are_refused(block):
    with pytest.raises(ManifestError, match="multiple of 4, got 6"):
        block("differential_attention", "model.n_embd=12")
