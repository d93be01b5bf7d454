"""KV shift against attention over keys and values shifted by hand."""

import pytest
import torch


def shifted(x, own, before):
    rows = [own[:, None] * x[:, :, 0]]  # nothing comes before the first token
    rows += [own[:, None] * x[:, :, t] + before[:, None] * x[:, :, t - 1] for t in range(1, x.shape[2])]
    return torch.stack(rows, dim=2)


@pytest.mark.parametrize("s", [1.0, 0.4])
def test_it_is_attention_over_shifted_keys_and_values(block, x, heads, weights, merged, equal, s):
    attn = block("kv_shift").attn
    core = attn.core
    core.s.fill_(s)
    q, k, v = heads(attn, x)
    new_k = (1 - s) * k + s * shifted(k, core.k_own, core.k_before)
    new_v = (1 - s) * v + s * shifted(v, core.v_own, core.v_before)
    equal(attn, attn(x, None)[0], merged(attn, weights(q @ new_k.mT, 8) @ new_v))


def test_the_gates_start_as_shares_that_differ_by_head(block):
    core = block("kv_shift", "model.n_head=16", "model.n_embd=64").attn.core
    with torch.no_grad():
        core.reset_parameters(torch.Generator().manual_seed(0))
    for own, before in ((core.k_own, core.k_before), (core.v_own, core.v_before)):
        torch.testing.assert_close(own + before, torch.ones_like(own))
        assert 0 <= own.min() < 0.3 < 0.7 < own.max() <= 1
