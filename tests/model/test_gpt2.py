"""The base model, held to GPT-2 written out in plain algebra, and to the sizes that were released."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ratrain.model.build import build

TOKENS = torch.randint(100, (3, 12), generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(-1, 100, (3, 12), generator=torch.Generator().manual_seed(1))


def norm(x, p, name):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    y = (x - mean) / (variance + 1e-5).sqrt() * p[f"{name}.weight"]
    return y + p.get(f"{name}.bias", 0)


def linear(x, p, name):
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)


def attention(x, p, name, n_head):
    q, k, v = (t.unflatten(-1, (n_head, -1)).transpose(1, 2) for t in linear(x, p, f"{name}.qkv").chunk(3, -1))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    y = scores.masked_fill(future, -math.inf).exp()
    y = y / y.sum(-1, keepdim=True) @ v
    return linear(y.transpose(1, 2).flatten(2), p, f"{name}.proj")


def gelu(h, form):
    if form == "gelu_tanh":
        return 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    return 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))


def oracle(p, tokens, *, n_layer=2, n_head=2, form="gelu", n_class=100):
    """Logits of GPT-2 with parameters `p`, by name."""
    h = p["wte.weight"][tokens] + p["pos.weight"][: tokens.shape[1]]
    for i in range(n_layer):
        at = f"blocks.{i}"
        h = h + attention(norm(h, p, f"{at}.norm_1"), p, f"{at}.attn", n_head)
        h = h + linear(gelu(linear(norm(h, p, f"{at}.norm_2"), p, f"{at}.mlp.up"), form), p, f"{at}.mlp.down")
    return norm(h, p, "norm") @ p["wte.weight"][:n_class].T


def jolted(model):
    """The model in float64, every parameter moved off its initial value, so that no bias or norm is trivial."""
    model.double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("form", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_logits_loss_and_gradients_are_those_of_gpt2_written_out(model_of, bias, form):
    model = jolted(model_of(bias=bias, act=form))
    p = {name: t.detach().clone().requires_grad_() for name, t in model.named_parameters()}
    logits = oracle(p, TOKENS, form=form)
    torch.testing.assert_close(model.logits(TOKENS), logits)
    loss = F.cross_entropy(logits.flatten(0, 1), TARGETS.flatten(), ignore_index=-1)
    ours = model(TOKENS, TARGETS)
    torch.testing.assert_close(ours, loss)
    ours.backward()
    expected = dict(zip(p, torch.autograd.grad(loss, list(p.values())), strict=True))
    torch.testing.assert_close({name: t.grad for name, t in model.named_parameters()}, expected)


def test_the_z_loss_moves_what_is_learned_and_nothing_that_is_told(tiny):
    tokens, targets = TOKENS % 64, TARGETS % 64
    told, learned = [], []
    for z_loss in (0.0, 0.1):
        model = build(tiny("gpt2", f"train.z_loss={z_loss}"))
        loss = model(tokens, targets)
        loss.backward()
        told.append((loss, model.eval()(tokens, targets)))
        learned.append(model.wte.weight.grad)
    torch.testing.assert_close(told[0], told[1], rtol=0, atol=0)
    assert not torch.equal(*learned)


def test_the_tanh_gelu_is_torchs_and_differs_from_the_exact_one(model_of):
    exact, tanh = (model_of(act=form).blocks[0].mlp.act for form in ("gelu", "gelu_tanh"))
    x = torch.linspace(-4, 4, 101)
    assert torch.equal(tanh(x), F.gelu(x, approximate="tanh"))
    assert torch.equal(exact(x), F.gelu(x))
    assert not torch.equal(tanh(x), exact(x))


@pytest.mark.parametrize(
    ("scale", "parameters"),
    [
        ("gpt2_124m", 124_475_904),
        ("gpt2_350m", 354_871_296),
        ("gpt2_774m", 774_090_240),
        ("gpt2_1558m", 1_557_686_400),
    ],
)
def test_the_released_sizes_have_the_released_parameters_with_the_table_padded(tiny, scale, parameters):
    model = build(tiny(scale=scale), device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_without_biases_no_parameter_is_called_bias(model_of):
    assert not [name for name, _ in model_of(bias=False).named_parameters() if name.endswith("bias")]


def test_padding_ids_are_never_predicted(model_of):
    model = model_of()
    assert model.wte.weight.shape[0] == 128
    assert model.logits(TOKENS).shape[-1] == 100
    loss = model(TOKENS, TARGETS)
    with torch.no_grad():
        model.wte.weight[100:] *= 1e4
    assert torch.equal(model(TOKENS, TARGETS), loss)


def test_the_token_table_is_the_head_and_stands_in_a_checkpoint_once(model_of):
    keys = set(model_of().state_dict())
    assert {key for key in keys if "wte" in key or "head" in key} == {"wte.weight"}


def test_dropout_falls_in_training_only(model_of):
    plain, dropping = model_of(), model_of(dropout=0.5)
    torch.manual_seed(0)
    assert not torch.equal(dropping(TOKENS, TARGETS), dropping(TOKENS, TARGETS))
    dropping.eval()
    assert torch.equal(dropping(TOKENS, TARGETS), plain(TOKENS, TARGETS))


@pytest.fixture(scope="module")
def wide(model_of):
    """Large enough that a sample's spread is known to a percent."""
    return model_of(n_layer=3, n_embd=192, n_head=4, block_size=256, vocab_size=2048)


@pytest.mark.parametrize(
    ("pattern", "std"),
    [
        ("wte.weight", 0.02),
        ("pos.weight", 0.02),
        ("blocks.2.attn.qkv.weight", 0.02),
        ("blocks.2.mlp.up.weight", 0.02),
        ("blocks.2.attn.proj.weight", 0.02 / math.sqrt(2 * 3)),
        ("blocks.2.mlp.down.weight", 0.02 / math.sqrt(2 * 3)),
    ],
)
def test_weights_start_as_released_gpt2s_do(wide, pattern, std):
    weight = wide.get_parameter(pattern)
    spread = std / math.sqrt(2 * weight.numel())  # of the standard deviation of a normal sample
    assert abs(weight.std() - std) < 5 * spread
    assert abs(weight.mean()) < 5 * std / math.sqrt(weight.numel())


def test_biases_start_at_0_and_norms_at_1(wide):
    named = dict(wide.named_parameters())
    assert not any(p.any() for name, p in named.items() if name.endswith("bias"))
    norms = [p for name, p in named.items() if "norm" in name and name.endswith("weight")]
    assert len(norms) == 2 * 3 + 1
    assert all((p == 1).all() for p in norms)


def test_no_two_parameters_start_from_the_same_draw(wide):
    starts = [tuple(p.flatten()[:3].tolist()) for name, p in wide.named_parameters() if p.dim() > 1]
    assert len(set(starts)) == len(starts)


def test_the_model_has_the_shapes_of_its_manifest(tiny):
    model = build(tiny("gpt2", "model.mlp_ratio=1.5", "model.n_layer=1"))
    assert len(model.blocks) == 1
    assert model.get_parameter("blocks.0.mlp.up.weight").shape == (48, 32)
