"""SinkGD by its definition, and the reference's, which is nearly plain gradient descent."""

from __future__ import annotations

import pytest
import torch

from ratrain.recipe.optim.sinkgd import balance
from ratrain.recipe.optim.sinkgd_legacy import squash


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rms(x, dim):
    return x.square().mean(dim).sqrt()


def plainly(x, iterations):
    m, n = x.shape
    for _ in range(iterations):
        x = torch.stack([n**0.5 * row / row.norm() for row in x])
        x = torch.stack([m**0.5 * column / column.norm() for column in x.T]).T
    return x


@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (16, 16), (1, 5)])
def test_balance_is_its_definition(shape):
    x = random(2, *shape)
    torch.testing.assert_close(balance(x.clone(), 3), torch.stack([plainly(each, 3) for each in x]))


@pytest.mark.parametrize("shape", [(64, 48), (48, 192), (192, 48)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_and_columns_are_of_one_length_after_five(shape, dtype):
    scales = random(shape[0], 1, seed=1).exp() * random(1, shape[1], seed=2).exp()
    x = balance((random(*shape) * scales).to(dtype)[None], 5)[0]
    assert (rms(x, 1) - 1).abs().max() < 0.01
    assert (rms(x, 0) - 1).abs().max() < 0.01


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e15])
def test_the_size_of_a_gradient_does_not_matter(scale):
    x = random(1, 8, 12, dtype=torch.float32)
    # ten times each element is divided by a norm, whose square is off by 12 roundings at most: it has that many terms
    near = {"rtol": 2 * 10 * (12 / 2 + 4) * 2**-24, "atol": 0}
    torch.testing.assert_close(balance(x * scale, 5), balance(x.clone(), 5), **near)


def test_zero_rows_and_columns_stay_zero():
    x = random(3, 6, 8)
    x[0, 2] = x[1, :, 3] = x[2] = 0
    y = balance(x.clone(), 5)
    assert y.isfinite().all()
    assert torch.equal(y == 0, x == 0)


def test_matrices_of_the_blocks_go_against_it_and_all_else_is_adamw(trial):
    """Without state: what the reference published under the name was neither (D20)."""
    one, other = trial("sinkgd", weight_decay=0.125), trial("adamw", weight_decay=0.125)
    expected = [p.detach().clone() for p in one.parameters]
    for seed in range(10):
        lr = 2.0 ** -(seed + 3)
        gradients = one.gradients(seed)
        one.step(gradients, lr=lr, scale=3, skip=0)
        other.step(gradients, lr=lr, scale=3, skip=0)
        for i in range(3):
            expected[i] = expected[i] * (1 - lr * 0.125) - lr * plainly(gradients[i], 5)
    torch.testing.assert_close([p.detach() for p in one.parameters[:3]], expected[:3])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters[3:], other.parameters[3:], strict=True))
    assert not any(one.optimizer.state.get(p) for p in one.parameters[:3])


def test_rest_lr_scales_only_the_rest(trial):
    one, other, half = trial("sinkgd", rest_lr=0.5), trial("sinkgd"), trial("adamw")
    for each, lr in ((one, 0.25), (other, 0.25), (half, 0.125)):
        each.steps(range(4), lr=lr)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters[:3], other.parameters[:3], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters[3:], half.parameters[3:], strict=True))


def reference(g, tau, iterations, eps):
    """The transform as the reference states it, for one tensor."""
    if iterations == 0:
        return g / (g.abs().mean() + eps)
    if g.dim() < 2:
        return torch.tanh(g / g.abs().sum().clamp(min=eps) / max(eps, tau))
    x = g
    for _ in range(iterations):
        x = x / x.abs().sum(-1, keepdim=True).clamp(min=eps)
        x = x / x.abs().sum(-2, keepdim=True).clamp(min=eps)
        x = torch.tanh(x / max(eps, tau))
    return x * ((g.square().mean().sqrt() + eps) / (x.square().mean().sqrt() + eps))


@pytest.mark.parametrize("options", [{}, {"tau": 0.05, "iterations": 10}, {"tau": 0.2, "iterations": 3},
                                     {"iterations": 0}, {"tau": 1e-4, "eps": 1e-2}])  # fmt: skip
def test_the_legacy_squashes_every_parameter(trial, options):
    one = trial("sinkgd_legacy", weight_decay=0.125, **options)
    full = {"tau": 0.1, "iterations": 5, "eps": 1e-8, **options}
    expected = [p.detach().clone() for p in one.parameters]
    for seed in range(6):
        gradients = one.gradients(seed)
        one.step(gradients, scale=4, skip=0, lr=0.25)
        for i, g in enumerate(gradients):
            expected[i] = expected[i] * (1 - 0.25 * (0.125 if i < 3 else 0)) - 0.25 * reference(g / 4, **full)
    torch.testing.assert_close([p.detach() for p in one.parameters], expected)


def test_the_legacy_is_gradient_descent_in_disguise():
    g = 5e-5 * random(1, 96, 64)
    x = squash(g, tau=0.1, iterations=5, eps=1e-8)
    torch.testing.assert_close(rms(x, (1, 2)), rms(g, (1, 2)))
    assert torch.equal(x.sign(), g.sign())
    assert torch.cosine_similarity(x.flatten(), g.flatten(), dim=0) > 0.95


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 5), (2,), (2, 3, 2, 2)])
@pytest.mark.parametrize("iterations", [0, 2])
def test_the_legacy_takes_each_of_a_stack_by_itself(shape, iterations):
    g, options = random(*shape), {"tau": 0.1, "iterations": iterations, "eps": 1e-8}
    g[0] = 0
    expected = torch.stack([reference(each, **options) for each in g])
    torch.testing.assert_close(squash(g.clone(), **options), expected)
