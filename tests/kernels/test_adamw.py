"""The kernel that takes AdamW's step on a GPU, under Triton's interpreter: its definition, and torch's own AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ratrain.kernels.adamw import AdamW, op, reference

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
    for one, exact in zip(moved, wanted, strict=True):
        # a few roundings, each of 6e-8 of numbers up to 4
        for found, expected in zip((one.parameter, one.exp_avg, one.exp_avg_sq), exact, strict=True):
            torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
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
    ours, theirs = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    optimizer = section.build([Group(("a", "b"), tuple(ours[:2]), 0.0), Group(("c", "d"), tuple(ours[2:]), 0.1)])
    groups = [{"params": theirs[:2], "weight_decay": 0.0}, {"params": theirs[2:], "weight_decay": 0.1}]
    other = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.999), foreach=False)
    assert optimizer.publishes
    for group in optimizer.param_groups:
        group["lr"].fill_(1e-2)
    for _ in range(5):
        for mine, its in zip(ours, theirs, strict=True):
            its.grad = torch.randn(its.shape, generator=generator)
            mine.grad = 2 * its.grad
        optimizer.grad_scale, optimizer.found_inf = told(2), told(0)
        optimizer.step()
        other.step()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-6)
        held = optimizer.state[mine]
        assert {name: x.shape for name, x in held.items()} == {name: x.shape for name, x in other.state[its].items()}
        assert held["step"] == 5
    # small ones are left as they were used, for what looks at the gradients of gates
    torch.testing.assert_close(ours[0].grad, theirs[0].grad)
