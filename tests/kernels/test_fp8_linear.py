"""Products of 8-bit numbers: the op against its definition, its noise against what rounding to 8 bits leaves."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from ratrain.engine.step import Precision, TrainStep
from ratrain.errors import UnavailableError
from ratrain.kernels.fp8_linear import fp8_linear, quantise, reference
from ratrain.kernels.linear_cross_entropy import linear_cross_entropy
from ratrain.machine import device
from ratrain.model.build import build
from ratrain.recipe.groups import group_parameters

rounding = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "rounding.py")))
N, K, M = 96, 64, 48


def drawn(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, K, generator=generator).to(dtype).requires_grad_()
    weight = (0.02 * torch.randn(M, K, generator=generator)).to(dtype).requires_grad_()
    return x, weight, torch.randn(M, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize("biased", [False, True])
def test_the_layer_is_its_reference(biased):
    x, weight, bias = drawn()
    bias = bias if biased else None
    y = fp8_linear(x.view(2, N // 2, K), weight, bias)
    assert y.shape == (2, N // 2, M)
    exact = [None if t is None else t.detach().double() for t in (x, weight, bias)]
    x8, weight8 = (reference.rounded(t.detach(), reference.VALUES) for t in (x, weight))
    unit = rounding.UNIT[torch.float32]
    expected = reference.forward(*exact)
    # beside the sum: two scales and their product, and the bias
    within = rounding.of_product(x8, weight8.T) + 4 * unit * (expected.abs() + (exact[2].abs() if biased else 0))
    rounding.check(y.flatten(0, 1), expected, within, "y")
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    rows = grad.flatten(0, 1)
    wanted = reference.backward(rows.double(), *exact[:2])
    bounds = (
        rounding.of_product(reference.rounded(rows, reference.GRADIENTS), weight8) + 4 * unit * wanted[0].abs(),
        rounding.of_product(rows.T, x.detach()),
        rounding.of_product(torch.ones(1, N), rows)[0],
    )
    wanting = {name: t for name, t in zip(("x", "weight", "bias"), (x, weight, bias), strict=True) if t is not None}
    found = torch.autograd.grad(y, list(wanting.values()), grad)
    for name, each, expected, bound in zip(wanting, found, wanted, bounds, strict=False):
        rounding.check(each, expected, bound, name)


def test_the_noise_of_a_product_is_that_of_rounding_each_factor():
    x, weight, _ = drawn()
    exact = F.linear(x.double(), weight.double())
    error = (fp8_linear(x, weight).double() - exact).square().mean().sqrt()
    # 3 bits of mantissa: a factor is off by a uniform error of at most 2^-4, a deviation of 2^-4 / sqrt(3)
    each = (x.double().square() @ weight.double().square().T).mean().sqrt()
    most = (2 * (2**-4) ** 2 / 3) ** 0.5 * each
    assert 0.2 * most < error < most


@pytest.mark.parametrize("dtype", [reference.VALUES, reference.GRADIENTS])
def test_the_largest_element_is_kept_and_zeros_stay_zeros(dtype):
    x = torch.tensor([[0.0, -3.0, 1e-9, 2.5]])
    eight, scale = quantise(x, dtype)
    back = eight.float() * scale
    assert back[0, 1] == -3.0
    assert back[0, 0] == 0
    zeros, scale = quantise(torch.zeros(2, 2), dtype)
    assert scale > 0
    assert not zeros.float().any()


def test_the_loss_in_8_bits_is_near_the_loss_and_so_are_its_gradients():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, K, generator=generator).requires_grad_()
    weight = (0.3 * torch.randn(256, K, generator=generator)).requires_grad_()
    targets = torch.randint(200, (200,), generator=generator)
    exact = linear_cross_entropy(x, weight, targets, n_class=200)
    eight = linear_cross_entropy(x, weight, targets, n_class=200, fp8=True)
    assert eight != exact
    torch.testing.assert_close(eight, exact, rtol=0.02, atol=0)
    for found, wanted in zip(*(torch.autograd.grad(loss, (x, weight)) for loss in (eight, exact)), strict=True):
        assert (found - wanted).norm() < 0.15 * wanted.norm()  # two factors of 2 and 3 bits of mantissa


def test_training_in_8_bits_learns_as_training_in_bf16_does(tiny):
    losses = {}
    for kind in ("bf16", "fp8"):
        manifest = tiny("v0", "model.vocab_size=2048")
        model = build(manifest)
        groups = group_parameters(model, manifest.optim.weight_decay)
        step = TrainStep(model, manifest.optim, groups=groups, precision=Precision(kind, model), micro_batch=4)
        step.set_lr(3e-3)
        tokens = torch.randint(2048, (4, 33), generator=torch.Generator().manual_seed(0))
        losses[kind] = torch.stack([step(tokens[:, :-1], tokens[:, 1:]).loss for _ in range(12)])
    assert not torch.equal(losses["fp8"], losses["bf16"])
    torch.testing.assert_close(losses["fp8"], losses["bf16"], rtol=0.02, atol=0)
    assert losses["fp8"][-1] < losses["fp8"][0] - 0.5


def test_a_gpu_without_such_products_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(UnavailableError, match=r"needs compute capability 8.9 or higher, and NVIDIA A100 has 8.0"):
        device.check_fp8(torch.device("cuda"))
    device.check_fp8(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    device.check_fp8(torch.device("cuda"), (768, 3072))
    with pytest.raises(UnavailableError, match="needs widths that 16 divides, got 100"):
        device.check_fp8(torch.device("cuda"), (768, 100))
