"""The output gate against its definition, per channel and per head."""

import pytest
import torch


@pytest.mark.parametrize("per", ["channel", "head"])
@pytest.mark.parametrize("s", [1.0, 0.4])
def test_a_sigmoid_of_the_token_scales_what_attention_puts_out(block, x, heads, weights, merged, equal, per, s):
    attn = block("output_gate", per=per).attn
    attn.blend.s.fill_(s)
    q, k, v = heads(attn, x)
    y = weights(q @ k.mT, 8) @ v
    gates = torch.sigmoid(x @ attn.blend.gate.weight.T)  # [B, T, C], or [B, T, H]
    by_head = gates.repeat_interleave(8, dim=-1) if per == "head" else gates
    gate = torch.stack(by_head.split(8, dim=-1), dim=1)  # [B, H, T, D]
    equal(attn, attn(x, None)[0], merged(attn, y * (1 - s + s * gate)))
