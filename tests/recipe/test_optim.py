"""Our AdamW against torch's plain one."""

from __future__ import annotations

import torch
from torch import nn

from ratrain.recipe.groups import Group
from ratrain.recipe.optim.adamw import AdamW

BETAS, EPS = (0.9, 0.95), 1e-8


def parameters():
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 3), (4,), (2, 2, 2))
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]


def built(own, **options):
    decayed, kept = Group(("a",), tuple(own[:1]), 0.1), Group(("b", "c"), tuple(own[1:]), 0.0)
    return AdamW(**options).build([decayed, kept])


def test_ten_steps_under_a_changing_rate_are_those_of_plain_adamw():
    ours, theirs = parameters(), parameters()
    optimizer = built(ours)
    plain = torch.optim.AdamW(
        [{"params": theirs[:1], "weight_decay": 0.1}, {"params": theirs[1:], "weight_decay": 0.0}],
        betas=BETAS,
        eps=EPS,
        foreach=False,
    )
    generator = torch.Generator().manual_seed(1)
    for step in range(10):
        lr = 2.0 ** -(step + 2)  # exact in fp32, in which the tensor holds it
        for group, other in zip(optimizer.param_groups, plain.param_groups, strict=True):
            group["lr"].fill_(lr)
            other["lr"] = lr
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator, dtype=torch.float64)
            b.grad = a.grad.clone()
        optimizer.step()
        plain.step()
    torch.testing.assert_close(ours, theirs)


def test_the_learning_rate_is_one_tensor_on_the_device_of_the_parameters():
    for group in built(parameters()).param_groups:
        assert isinstance(group["lr"], torch.Tensor)
        assert group["lr"].device == group["params"][0].device
        assert group["fused"]


def test_the_manifest_decides_betas_and_eps():
    (group, *_) = built(parameters(), betas=(0.5, 0.75), eps=1e-3).param_groups
    assert (group["betas"], group["eps"]) == ((0.5, 0.75), 1e-3)


def test_a_group_without_parameters_is_left_out():
    (group,) = AdamW().build([Group(("a",), tuple(parameters()), 0.1), Group((), (), 0.0)]).param_groups
    assert len(group["params"]) == 3
