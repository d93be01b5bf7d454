"""The modern base, held to plain algebra, with RoPE as a product of complex numbers."""

from __future__ import annotations

import pytest
import torch

from ratrain.config.schema import ModelSpec
from ratrain.model.build import build
from ratrain.model.count import count
from ratrain.model.generate import decode, generate
from ratrain.patches.unified_ra import UnifiedRA
from ratrain.recipe.groups import group_parameters

MODERN = {"pos": "rope", "norm": "rms", "qk_norm": "rms", "act": "relu2", "bias": False}
TOKENS = torch.randint(100, (3, 12), generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(-1, 100, (3, 12), generator=torch.Generator().manual_seed(1))


def rms(x, weight=1.0):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def turned(x):
    """x [B, H, T, D] with each pair of channels as a complex number, times exp(i t speed)."""
    n_pair = x.shape[-1] // 2
    speed = 10_000.0 ** (-torch.arange(n_pair, dtype=torch.float64) / n_pair)
    angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * speed
    pairs = torch.view_as_complex(x.unflatten(-1, (n_pair, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def oracle(p, tokens, *, n_layer=2, n_head=2, n_class=100):
    """Logits of the modern base with parameters `p`, by name."""
    h = p["wte.weight"][tokens]
    future = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
    for i in range(n_layer):
        w = {name.removeprefix(f"blocks.{i}."): value for name, value in p.items()}
        x = rms(h, w["norm_1.weight"]) @ w["attn.qkv.weight"].T
        q, k, v = (t.unflatten(-1, (n_head, -1)).transpose(1, 2) for t in x.chunk(3, -1))
        scores = turned(rms(q)) @ turned(rms(k)).mT / q.shape[-1] ** 0.5
        y = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        h = h + y.transpose(1, 2).flatten(2) @ w["attn.proj.weight"].T
        up = rms(h, w["norm_2.weight"]) @ w["mlp.up.weight"].T
        h = h + up.clamp(min=0) ** 2 @ w["mlp.down.weight"].T
    head = p.get("unembed.weight", p["wte.weight"])
    return rms(h, p["norm.weight"]) @ head[:n_class].T


@pytest.fixture(scope="module")
def modern_of(model_of):
    """A modern model in float64, tables of angles included, that has moved off its initial weights."""

    def modern_of(*patches, **shape):
        model = model_of({type(p).kind: p for p in patches}, **{**MODERN, **shape}).double().eval()
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for block in model.blocks:
            block.attn.pos.reset_parameters(generator)  # else they stay as rounded as fp32 had them
        return model

    return modern_of


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_logits_loss_and_gradients_are_those_of_the_algebra(modern_of, head):
    model = modern_of(head=head)
    p = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    logits = oracle(p, TOKENS)
    torch.testing.assert_close(model.logits(TOKENS), logits, rtol=0, atol=1e-11)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TARGETS.flatten(), ignore_index=-1)
    torch.testing.assert_close(model(TOKENS, TARGETS), loss, rtol=0, atol=1e-11)
    model(TOKENS, TARGETS).backward()
    loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, p[name].grad, rtol=0, atol=1e-11)


def test_tables_of_angles_are_exact_but_for_their_own_rounding(model_of):
    pos = model_of(**MODERN).blocks[0].attn.pos
    there = turned(torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 1, 12, pos.cos.shape[1], 2).flatten(-2))
    for table, exact in zip((pos.cos, pos.sin), there[0, 0].unflatten(-1, (-1, 2)).unbind(-1), strict=True):
        torch.testing.assert_close(table.double(), exact, rtol=2**-24, atol=1e-14)  # angles are up to 11


def test_scores_depend_on_distances_only(modern_of):
    pos = modern_of().blocks[0].attn.pos
    q, k = torch.randn(2, 1, 2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near, far = (torch.matmul(a, b.mT) for a, b in (pos(q, k, 0), pos(q, k, 7)))
    torch.testing.assert_close(near, far, rtol=0, atol=1e-12)


def test_decoding_with_a_cache_gives_the_logits_of_the_full_forward_pass(modern_of):
    model = modern_of(head="untied")
    torch.testing.assert_close(decode(model, TOKENS), model.logits(TOKENS).detach())


def test_text_goes_on_beyond_the_context(modern_of):
    assert len(list(generate(modern_of(), TOKENS[0], count=30))) == 30


def test_gating_score_channels_before_or_after_the_turn_is_the_same(modern_of):
    attn = modern_of(UnifiedRA(rank=2)).blocks[1].attn
    x = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (q, k, _), (gated, _, _) = attn.qkv(x, None), attn.qkv(x, attn.score())
    torch.testing.assert_close(attn.pos(gated, k, 0)[0], attn.pos(q, k, 0)[0] * attn.score()[:, None])


def test_an_untied_head_is_a_table_of_its_own(model_of):
    model, tied = model_of(head="untied"), model_of()
    own = dict(model.named_parameters())
    assert set(own) - set(dict(tied.named_parameters())) == {"unembed.weight"}
    assert own["unembed.weight"].shape == own["wte.weight"].shape
    assert not torch.equal(own["unembed.weight"], own["wte.weight"])
    assert torch.equal(own["wte.weight"], tied.wte.weight)  # the draw of every other weight is the tied model's


def test_an_untied_head_is_optimised_once_without_decay(model_of):
    model = model_of(head="untied")
    holders = [g for g in group_parameters(model, 0.1) for p in g.parameters if p is model.unembed.weight]
    assert [group.weight_decay for group in holders] == [0]


def test_an_untied_head_adds_parameters_and_no_flops(model_of):
    untied, tied = count(model_of(head="untied")), count(model_of())
    assert untied.parameters - tied.parameters == 128 * 16
    assert untied.forward_flops_per_token == tied.forward_flops_per_token


def test_rope_has_no_position_parameters_and_no_keys_in_a_checkpoint(model_of):
    model = model_of(**MODERN)
    assert count(model).position_parameters == 0
    assert not [key for key in model.state_dict() if "pos" in key or "bias" in key]


def test_what_both_bases_share_starts_from_the_same_draw(model_of):
    modern, base = dict(model_of(**MODERN).named_parameters()), dict(model_of().named_parameters())
    assert set(modern) < set(base)
    assert all(torch.equal(modern[name], base[name]) for name in modern)


def test_rope_refuses_odd_heads():
    with pytest.raises(ValueError, match="turns channels in pairs"):
        ModelSpec(n_layer=1, n_head=2, n_embd=6, block_size=8, vocab_size=100, pos="rope")


def test_the_manifest_is_the_modern_base(tiny):
    model = build(tiny("modern"), device="meta")
    assert {key: getattr(model.spec, key) for key in MODERN} == MODERN
