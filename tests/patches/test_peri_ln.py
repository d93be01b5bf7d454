"""Peri-LN: what the sub-layers add to the stream."""

import pytest
import torch


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("s", [1.0, 0.4])
def test_what_a_sub_layer_puts_out_is_normed(block, x, norm, s):
    patched = block("peri_ln", f"model.norm={norm}")
    for part in (patched.attn.proj, patched.mlp.down):
        part.s.fill_(s)
        inputs = (x,) if part is patched.attn.proj else (x.repeat(1, 1, 4), None)
        y = part.inner(*inputs)
        centred = y - y.mean(-1, keepdim=True) if norm == "layer" else y
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * part.norm.weight
        normed = normed + part.norm.bias if norm == "layer" else normed
        torch.testing.assert_close(part(*inputs), (1 - s) * y + s * normed)


def test_it_is_what_joins_the_stream(block, x):
    patched = block("peri_ln")
    down, hidden = patched.mlp.down, patched.mlp.act(patched.mlp.up(x))
    torch.testing.assert_close(patched.mlp(x), down.norm(down.inner(hidden, None)))
