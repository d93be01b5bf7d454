"""Gradients that are summed for a bias while they are written, against autograd in float64 and in the model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ratrain.kernels import bias_gradient
from ratrain.kernels.bias_gradient import op, reference

# rows and columns below, at and above a program's 128 and 128, with and without a rest
SHAPES = ((3, 5), (128, 128), (130, 144), (300, 32))
EPS = torch.finfo(torch.float32).eps
SLOPE = 1.2  # no slope of GELU is larger, and its dozen roundings are of numbers up to this


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def heads(shape, seed, *, packed=False):
    """[B, H, T, D], lying as attention leaves gradients, or as they are without attention."""
    batch, n_head, n_token, head_dim = shape
    x = normal(batch, n_token, n_head, head_dim, seed=seed).transpose(1, 2)
    return x if packed else x.contiguous()


@pytest.mark.parametrize("tanh", [False, True])
def test_the_definition_of_gelu_is_torchs_own(tanh):
    h, grad = normal(7, 9, dtype=torch.float64).requires_grad_(), normal(7, 9, seed=1, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(F.gelu(h, approximate="tanh" if tanh else "none"), h, grad)
    d_h, d_bias = reference.gelu_backward(grad, h.detach(), tanh)
    torch.testing.assert_close(d_h, wanted)
    torch.testing.assert_close(d_bias, wanted.sum(0))


def test_the_definition_of_packing_undoes_the_split():
    x = normal(2, 6, 3 * 8, dtype=torch.float64).requires_grad_()
    q, k, v = x.view(2, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
    grads = [normal(2, 2, 6, 4, seed=seed, dtype=torch.float64) for seed in range(3)]
    (wanted,) = torch.autograd.grad((q, k, v), x, grads)
    packed, d_bias = reference.pack(*grads)
    assert torch.equal(packed, wanted.view(12, 24))
    torch.testing.assert_close(d_bias, wanted.sum((0, 1)))


@pytest.mark.parametrize("tanh", [False, True])
def test_operations_pass_torchs_check(tanh):
    torch.library.opcheck(op._gelu_backward, (normal(6, 8), normal(6, 8, seed=1), tanh))
    torch.library.opcheck(op._pack, tuple(heads((2, 2, 3, 4), seed) for seed in range(3)))


@pytest.mark.parametrize("tanh", [False, True])
def test_layers_with_a_detached_bias_have_the_gradients_of_layers_without(tanh):
    shapes = (2, 5, 4), (12, 4), (12,), (2, 5, 12)
    x, weight, bias, grad = (normal(*shape, seed=seed, dtype=torch.float64) for seed, shape in enumerate(shapes))
    form = "tanh" if tanh else "none"

    def plain(x, w, b):
        return F.gelu(F.linear(x, w, b), approximate=form)

    def fused(x, w, b):
        return bias_gradient.biased_gelu(F.linear(x, w, b.detach()), b, tanh=tanh)

    def split(x, w, b):
        q, k, v = bias_gradient.split_heads(F.linear(x, w, b.detach()), b, 2)
        return torch.stack((q, k, v), 2).permute(0, 3, 2, 1, 4).reshape(2, 5, 12)

    for one, other in ((plain, fused), (F.linear, split)):
        found, wanted = [], []
        for layer, into in ((other, found), (one, wanted)):
            given = [t.clone().requires_grad_() for t in (x, weight, bias)]
            y = layer(*given)
            into += [y, *torch.autograd.grad(y, given, grad)]
        for mine, its in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, its)


def test_a_cpu_keeps_torchs_own_layers(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not bias_gradient.fuses(normal(2, 3))


def test_nothing_is_fused_where_no_gradient_is_wanted(monkeypatch):
    monkeypatch.setattr(op, "on_kernels", lambda x: True)
    assert bias_gradient.fuses(normal(2, 3))
    with torch.no_grad():
        assert not bias_gradient.fuses(normal(2, 3))


@pytest.mark.interpreter
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tanh", [False, True])
def test_the_gelu_kernel_is_its_definition(shape, tanh):
    grad, h = normal(*shape), 2 * normal(*shape, seed=1)
    d_h, sums = op._gelu_backward(grad, h, tanh)
    wanted, total = reference.gelu_backward(grad.double(), h.double(), tanh)
    # a dozen roundings of numbers up to SLOPE (in the tanh form of its argument u, |u| below 20, which e^-u damps)
    bound = 32 * EPS * SLOPE * grad.double().abs()
    assert ((d_h.double() - wanted).abs() <= bound).all()
    # the sum adds one rounding a term and a program
    assert ((sums.double().sum(0) - total).abs() <= bound.sum(0) + shape[0] * EPS * wanted.abs().sum(0)).all()
    assert sums.shape == (-(-shape[0] // op.ROWS), shape[1])


@pytest.mark.interpreter
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(2, 2, 5, 8), (1, 3, 128, 16), (3, 2, 100, 64), (2, 12, 70, 64)])
def test_the_packing_kernel_is_its_definition(shape, packed):
    grads = [heads(shape, seed, packed=packed) for seed in range(3)]
    found, sums = op._pack(*grads)
    wanted, total = reference.pack(*grads)
    assert torch.equal(found, wanted)
    n_row = shape[0] * shape[2]
    assert ((sums.double().sum(0) - total.double()).abs() <= n_row * EPS * wanted.double().abs().sum(0)).all()


@pytest.mark.interpreter
def test_a_model_with_fused_layers_trains_as_one_without(monkeypatch):
    from ratrain.config.schema import ModelSpec
    from ratrain.model import gpt2

    spec = ModelSpec(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=32)
    tokens = torch.arange(16).view(2, 8)

    def gradients():
        model = gpt2.GPT2(spec)
        generator = torch.Generator().manual_seed(0)
        for part in model.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters(generator)
        model(tokens, tokens.roll(-1, 1)).backward()
        return {name: p.grad for name, p in model.named_parameters()}

    fused = gradients()
    calls = []
    monkeypatch.setattr(gpt2.bias_gradient, "fuses", lambda x: calls.append(x) and False)
    plain = gradients()
    assert calls
    for name, grad in fused.items():
        # sums in another order, of numbers that pass through two blocks
        scale = plain[name].abs().max().item()
        torch.testing.assert_close(grad, plain[name], rtol=0, atol=256 * EPS * scale, msg=name)
