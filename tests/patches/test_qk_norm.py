"""QK-norm against its equation; and where a gate on score channels comes in."""

from types import SimpleNamespace

import pytest
import torch

from ratrain.errors import ManifestError


def unit(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("s", [1.0, 0.4])
def test_queries_and_keys_are_normed_per_head_and_values_are_not(block, x, heads, weights, merged, equal, s):
    attn = block("qk_norm").attn
    attn.qkv.s.fill_(s)
    q, k, v = heads(SimpleNamespace(qkv=attn.qkv.inner), x)
    q = (1 - s) * q + s * attn.qkv.g[:, None, None] * unit(q)
    k = (1 - s) * k + s * unit(k)
    equal(attn, attn(x, None)[0], merged(attn, weights(q @ k.mT, 8) @ v))


def test_a_gate_on_score_channels_is_not_normed_away(block, x):
    qkv = block("qk_norm").attn.qkv
    gate = torch.linspace(0.1, 2, 16, dtype=x.dtype).view(2, 8)
    torch.testing.assert_close(qkv(x, gate)[0], qkv(x, None)[0] * gate[:, None])


def test_a_base_that_norms_them_already_is_refused(block):
    with pytest.raises(ManifestError, match="norms queries and keys already"):
        block("qk_norm", "model.qk_norm=rms")
