"""Muon against its polynomial in float64, and against torch's."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ratrain.recipe.optim.muon import orthogonalise

rounding = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "rounding.py")))
A, B, C = 3.4445, -4.7750, 2.0315


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plainly(x, iterations=5):
    """The polynomial applied to the singular values."""
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(iterations):
        s = A * s + B * s**3 + C * s**5
    return (u * s) @ v


def iterated(x, iterations, dtype):
    """Largest error of the polynomial's Frobenius norm, computed by products of matrices in `dtype`.

    Of a product M N the squares of all terms sum up to |M|_F^2 |N|_2^2 at most; x is in one product, x^3 in two, x^5 in
    three. An iteration moves errors by the slope of the polynomial, below 4 from 0 to its largest value of 1.203.
    The singular values and vectors, found in float64, are those of an x that is off by some roundings of each element.
    """
    s, n = torch.linalg.svdvals(x.double()), max(x.shape)
    s, error = s / s.norm(), n * rounding.UNIT[torch.float64]
    for _ in range(iterations):
        largest = s.max()
        terms = s.norm() * (A + 2 * abs(B) * largest**2 + 3 * C * largest**4)
        error = 4 * error + rounding.UNIT[dtype] * (n / 6) ** 0.5 * terms
        s = A * s + B * s**3 + C * s**5
    return rounding.DEVIATIONS * error


@pytest.mark.parametrize("shape", [(12, 12), (12, 40), (40, 12), (1, 7)])
@pytest.mark.parametrize("iterations", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_newton_schulz_is_its_polynomial_of_the_singular_values(shape, iterations, dtype):
    x = random(3, *shape).to(dtype)
    found = orthogonalise(x, iterations)
    assert found.dtype == dtype
    for each, y in zip(x, found, strict=True):
        rounding.check((y - plainly(each, iterations)).norm(), torch.zeros(()), iterated(each, iterations, dtype))


def test_singular_values_end_near_one():
    found = torch.linalg.svdvals(orthogonalise(random(4, 32, 48, dtype=torch.float32), 5))
    assert found.min() > 0.6 and found.max() < 1.3


def test_a_matrix_of_zeros_stays_one():
    x = random(2, 4, 6)
    x[0] = 0
    assert not orthogonalise(x, 5)[0].any()


@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.95, 0.0])
def test_matrices_go_against_their_momentum_and_all_else_is_adamw(trial, adjust, nesterov, momentum):
    options = {"adjust": adjust, "nesterov": nesterov, "momentum": momentum}
    one, other = trial("muon", weight_decay=0.125, **options), trial("adamw", weight_decay=0.125)
    expected, mean = [p.detach().clone() for p in one.parameters], [torch.zeros_like(p) for p in one.parameters]
    for seed in range(10):
        lr, gradients = 2.0 ** -(seed + 3), one.gradients(seed)
        one.step(gradients, lr=lr, scale=4, skip=0)
        other.step(gradients, lr=lr, scale=4, skip=0)
        for i in range(3):
            g, (m, n) = gradients[i] / 4, gradients[i].shape
            mean[i] = momentum * mean[i] + (1 - momentum) * g
            ahead = (1 - momentum) * g + momentum * mean[i] if nesterov else mean[i]
            ratio = 0.2 * max(m, n) ** 0.5 if adjust == "match_rms_adamw" else max(1, m / n) ** 0.5
            expected[i] = expected[i] * (1 - lr * 0.125) - lr * ratio * plainly(ahead)
    torch.testing.assert_close([p.detach() for p in one.parameters[:3]], expected[:3])
    torch.testing.assert_close(one.state("momentum_buffer"), mean[:3])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters[3:], other.parameters[3:], strict=True))


@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
def test_in_bf16_it_is_torch_s_within_bf16(trial, adjust):
    one = trial("muon", dtype=torch.float32, weight_decay=0.125, newton_schulz="bf16", adjust=adjust)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in one.parameters[:3]]
    plain = torch.optim.Muon(theirs, lr=0.0, weight_decay=0.125, momentum=0.95, adjust_lr_fn=adjust)
    start = [p.detach().clone() for p in theirs]
    for seed in range(10):
        lr, gradients = 2.0 ** -(seed + 3), one.gradients(seed)
        plain.param_groups[0]["lr"] = lr
        for parameter, gradient in zip(theirs, gradients, strict=False):
            parameter.grad = gradient.clone()
        plain.step()
        one.step(gradients, lr=lr)
    for ours, their, before in zip(one.parameters, theirs, start, strict=False):
        moved = (their - before).norm()
        assert (ours - their).norm() < 2**-6 * moved  # bf16 has 8 bits, and iterations and steps add up


def test_a_step_is_about_as_large_as_one_of_adamw(trial):
    one = trial("muon", weight_decay=0.0)
    before = [p.detach().clone() for p in one.parameters]
    one.steps([0], lr=0.5)
    for parameter, start in zip(one.parameters[:3], before, strict=False):
        size = (parameter - start).square().mean().sqrt() / 0.5
        assert 0.1 < size < 0.4


def test_matrices_of_one_shape_do_not_mix(trial):
    one, other = trial("muon"), trial("muon")
    for seed in range(3):
        gradients = one.gradients(seed)
        one.step(gradients)
        gradients[2] = gradients[2] * 2 + 1  # of the shape of the first
        other.step(gradients)
    torch.testing.assert_close(one.parameters[0], other.parameters[0])
    assert not torch.allclose(one.parameters[2], other.parameters[2])
