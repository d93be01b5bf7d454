"""The kernel that takes AdamW's step on a GPU, under Triton's interpreter: its definition, and torch's own AdamW."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ratrain.kernels.adamw import AdamW, op, reference

rounding = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "rounding.py")))
UNIT = rounding.UNIT[torch.float32]

SIZES = ((5,), (1024,), (37, 64), (64, 32))  # below, at and above a block of 1024, with and without a rest
OPTIONS = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def drawn(*, narrow=False, copied=False):
    """Parameters after three steps, as the kernel takes them."""
    generator = torch.Generator().manual_seed(0)

    def normal(shape):
        return torch.randn(shape, generator=generator)

    moved = []
    for shape in SIZES:
        gradient = normal(shape).to(torch.bfloat16 if narrow else torch.float32)
        moments = 0.1 * normal(shape), normal(shape).square()
        copy = torch.empty(shape, dtype=torch.bfloat16) if copied else None
        moved.append(op.Moved(normal(shape), gradient, *moments, torch.tensor(3.0), copy))
    return moved


def told(value):
    return torch.tensor(float(value))


def bounds(before, gradient, after, errors, *, step, lr):
    """Of the parameter and both moments after a step in fp32, from their errors before it: u for each operation, and
    for each number that fp32 does not hold, on the terms of either sign. All in float64."""
    beta1, beta2 = OPTIONS["betas"]
    (p, m, _), (_, _, v), (of_p, of_m, of_v) = before, after, errors
    terms = beta1 * m.abs() + (1 - beta1) * gradient.abs()  # of the first moment
    of_m = beta1 * of_m + 4 * UNIT * terms
    of_v = beta2 * of_v + 6 * UNIT * v
    root = (v / (1 - beta2**step)).sqrt() + OPTIONS["eps"]
    rate = lr / (1 - beta1**step) / root  # of the first moment
    return of_p + 3 * UNIT * p.abs() + rate * (of_m + terms * (of_v / (2 * v) + 10 * UNIT)), of_m, of_v


@pytest.mark.interpreter
@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("scale", [None, 4.0])
def test_the_kernel_takes_the_step_of_the_reference(narrow, copied, scale):
    moved = drawn(narrow=narrow, copied=copied)
    wide = [[x.double() for x in (m.parameter, m.gradient, m.exp_avg, m.exp_avg_sq)] for m in moved]
    wanted = [
        reference.update(*tensors, torch.tensor(4.0), lr=0.01, grad_scale=scale or 1.0, **OPTIONS) for tensors in wide
    ]
    AdamW()(0, moved, lr=told(0.01), grad_scale=scale and told(scale), found_inf=None, **OPTIONS)
    for one, (p, g, m, v), exact in zip(moved, wide, wanted, strict=True):
        within = bounds((p, m, v), g / (scale or 1.0), exact, (0.0, 0.0, 0.0), step=4, lr=0.01)
        for found, expected, bound in zip((one.parameter, one.exp_avg, one.exp_avg_sq), exact, within, strict=True):
            rounding.check(found, expected, bound)
        assert one.step == 4
        if one.copy is not None:
            # a unit in the last place: the interpreter cuts off where a GPU rounds
            torch.testing.assert_close(one.copy.float(), one.parameter, rtol=2**-7, atol=0)


@pytest.mark.interpreter
def test_a_step_that_is_skipped_changes_nothing():
    moved, before = drawn(), drawn()
    AdamW()(0, moved, lr=told(0.01), grad_scale=None, found_inf=told(1), **OPTIONS)
    for one, other in zip(moved, before, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("parameter", "exp_avg", "step"))


@pytest.mark.interpreter
def test_tensors_that_have_moved_in_memory_are_found_again():
    kernel, moved, elsewhere = AdamW(), drawn(), drawn()
    for each in (moved, elsewhere):
        kernel(0, each, lr=told(0.01), grad_scale=None, found_inf=None, **OPTIONS)
    for one, other in zip(moved, elsewhere, strict=True):
        assert torch.equal(one.parameter, other.parameter)


@pytest.mark.interpreter
def test_it_trains_as_torchs_own_from_the_first_step_on():
    from ratrain.recipe.groups import Group
    from ratrain.registry import optim_kinds

    section = optim_kinds()["adamw"](betas=(0.9, 0.999))
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in SIZES]
    ours, theirs = ([nn.Parameter(x.to(dtype, copy=True)) for x in start] for dtype in (torch.float32, torch.float64))
    errors = [(0.0, 0.0, 0.0) for _ in theirs]
    optimizer = section.build([Group(("a", "b"), tuple(ours[:2]), 0.0), Group(("c", "d"), tuple(ours[2:]), 0.1)])
    groups = [{"params": theirs[:2], "weight_decay": 0.0}, {"params": theirs[2:], "weight_decay": 0.1}]
    other = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.999), foreach=False)
    assert optimizer.publishes
    for group in optimizer.param_groups:
        group["lr"].fill_(1e-2)

    def moments(its):
        state = other.state[its]
        return tuple(state[key].clone() if state else torch.zeros_like(its) for key in ("exp_avg", "exp_avg_sq"))

    for step in range(1, 6):
        for mine, its in zip(ours, theirs, strict=True):
            mine.grad = 2 * torch.randn(its.shape, generator=generator)
            its.grad = mine.grad.double() / 2
        before = [(its.detach().clone(), *moments(its)) for its in theirs]
        optimizer.grad_scale, optimizer.found_inf = told(2), told(0)
        optimizer.step()
        other.step()
        for i, its in enumerate(theirs):
            errors[i] = bounds(before[i], its.grad, (its, *moments(its)), errors[i], step=step, lr=1e-2)
    for mine, its, within in zip(ours, theirs, errors, strict=True):
        rounding.check(mine, its, within[0])
        held = optimizer.state[mine]
        assert {name: x.shape for name, x in held.items()} == {name: x.shape for name, x in other.state[its].items()}
        assert held["step"] == 5
    # small ones are left as they were used, for what looks at the gradients of gates
    rounding.check(ours[0].grad, theirs[0].grad, UNIT * theirs[0].grad.abs())
