"""The parts of a small patched model in float64, every parameter drawn anew, and GPT-2's attention written out."""

from __future__ import annotations

import pytest
import torch

from ratrain.model.build import build
from ratrain.registry import patch_kinds

SHAPE = ("model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=12")
LENGTH = 11


@pytest.fixture
def block(tiny):
    """The second block of GPT-2 with the patch `kind`; gates, which all start alike, are drawn too."""

    def block(kind, *overrides, **options):
        manifest = tiny("gpt2", *SHAPE, *overrides)
        patch = patch_kinds()[kind](**options)
        model = build(manifest.model_copy(update={"patch": {kind: patch}})).double()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.5, generator=generator)
        return model.blocks[1]

    return block


@pytest.fixture
def x():
    """[B, T, C]"""
    return torch.randn(3, LENGTH, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def heads():
    """x -> q, k, v [B, H, T, D] by the packed weights of an attention, which split into q, k, v and then into heads."""

    def heads(attn, x):
        rows = attn.qkv.weight.view(3, attn.qkv.n_head, -1, x.shape[-1])
        bias = attn.qkv.bias.view(3, attn.qkv.n_head, -1)
        return [torch.einsum("btc,hdc->bhtd", x, w) + b[:, None] for w, b in zip(rows, bias, strict=True)]

    return heads


@pytest.fixture
def weights():
    """Scores [B, H, T, T], not yet scaled -> causal softmax of scores over the root of `head_dim`."""

    def weights(scores, head_dim):
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return (scores / head_dim**0.5).masked_fill(later, float("-inf")).softmax(-1)

    return weights


@pytest.fixture
def merged():
    """Heads [B, H, T, D] -> what an attention returns [B, T, C]."""

    def merged(attn, y):
        return torch.cat(list(y.unbind(1)), dim=-1) @ attn.proj.weight.T + attn.proj.bias

    return merged


@pytest.fixture
def equal():
    """Whether outputs, and the gradients of all of a module's parameters that they lead to, agree."""

    def equal(module, ours, oracle, *, atol=1e-12):
        torch.testing.assert_close(ours, oracle, rtol=0, atol=atol)
        named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        pull = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(5))
        got, want = (torch.autograd.grad((y * pull).sum(), list(named.values())) for y in (ours, oracle))
        for name, a, b in zip(named, got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=atol, msg=lambda text, name=name: f"{name}: {text}")

    return equal
