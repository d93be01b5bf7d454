"""SGD, Adam and the kinds of AdamW against torch's plain ones."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest
import torch

from ratrain.recipe.groups import Group
from ratrain.recipe.optim.adam import Adam
from ratrain.recipe.optim.adamw import AdamW
from ratrain.recipe.optim.sgd import SGD
from ratrain.registry import optim_kinds

OPTIMIZERS: Any = optim_kinds()
BETAS, EPS = (0.9, 0.95), 1e-8
PLAIN = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {"betas": BETAS, "eps": EPS}),
    "adamw": (torch.optim.AdamW, {"betas": BETAS, "eps": EPS}),
    "adamwprune": (torch.optim.AdamW, {"betas": BETAS, "eps": EPS}),
    "adamwadv": (torch.optim.AdamW, {"betas": BETAS, "eps": EPS, "amsgrad": True}),
    "adamw_amsgrad": (torch.optim.AdamW, {"betas": BETAS, "eps": EPS, "amsgrad": True}),
}


def plain(kind, parameters, decay, **options):
    torchs, defaults = PLAIN[kind]
    groups = [{"params": parameters[:3], "weight_decay": decay}, {"params": parameters[3:], "weight_decay": 0.0}]
    return torchs(groups, lr=0.0, foreach=False, **defaults | options)


def compare(ours, kind, *, decay, steps=12, clip=None, **options):
    """Both under the same gradients, ours divided by `clip` in its step and theirs before."""
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours.parameters]
    optimizer = plain(kind, theirs, decay, **options)
    for seed in range(steps):
        lr = 2.0 ** -(seed + 2)
        gradients = [g / (1 + seed) for g in ours.gradients(seed)]  # they shrink, so that AMSGrad makes a difference
        for group in optimizer.param_groups:
            group["lr"] = lr
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient / (clip or 1)
        optimizer.step()
        ours.step(gradients, lr=lr, scale=clip, skip=0)
    torch.testing.assert_close(ours.parameters, theirs)


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("clip", [None, 3.0])
def test_twelve_steps_under_a_changing_rate_are_those_of_torch(trial, kind, clip):
    compare(trial(kind, weight_decay=0.125), kind, decay=0.125, clip=clip)


def test_ten_steps_under_a_changing_rate_are_those_of_plain_adamw(trial):
    compare(trial("adamw"), "adamw", decay=0.1, steps=10)


@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"nesterov": True}, {"momentum": 0.5}])
def test_sgd_has_the_momentum_that_it_is_told(trial, options):
    compare(trial("sgd", weight_decay=0.125, **options), "sgd", decay=0.125, **options)


def test_amsgrad_makes_a_difference(trial):
    with pytest.raises(AssertionError, match="close"):
        compare(trial("adamwadv", weight_decay=0.125), "adamw", decay=0.125)


@pytest.mark.parametrize("base", ["adam", "adamw", "adamwadv"])
def test_adamwprune_steps_as_its_base_does(trial, base):
    options = {"betas": (0.5, 0.75), "eps": 1e-3}
    compare(trial("adamwprune", base=base, weight_decay=0.125, **options), base, decay=0.125, **options)


def test_adamwprune_on_spam_is_spam(trial):
    one, other = trial("adamwprune", base="adamwspam"), trial("adamwspam")
    assert type(one.optimizer) is type(other.optimizer)
    for each in (one, other):
        each.steps(range(3))
    assert one.bits().keys() == other.bits().keys()
    assert all(torch.equal(one.bits()[name], other.bits()[name]) for name in one.bits())


def test_amsgrad_has_two_names_for_one_function(trial):
    """What the reference's V-series ran as adamwspam is its adamwadv (D13)."""
    one, other = trial("adamwadv"), trial("adamw_amsgrad")
    for each in (one, other):
        each.steps(range(5), scale=2, skip=0)
    assert all(torch.equal(one.bits()[name], other.bits()[name]) for name in one.bits())


def test_sgd_is_clipped_like_all_others(trial):
    """The reference left it out (D19)."""
    one = trial("sgd", momentum=0.0, weight_decay=0.0)
    before = [p.detach().clone() for p in one.parameters]
    one.steps([0], scale=8, skip=0, lr=0.5)
    for parameter, start, gradient in zip(one.parameters, before, one.gradients(0), strict=True):
        torch.testing.assert_close(parameter.detach(), start - 0.5 * gradient / 8)


def test_only_adam_decays_nothing_by_default():
    assert {kind: OPTIMIZERS[kind]().weight_decay for kind in PLAIN} == {**dict.fromkeys(PLAIN, 0.1), "adam": 0.0}


def test_nesterov_needs_a_momentum():
    with pytest.raises(pydantic.ValidationError, match="expected momentum above 0"):
        SGD(nesterov=True, momentum=0.0)


def test_the_learning_rate_is_one_tensor_on_the_device_of_the_parameters(trial):
    for kind in PLAIN:
        for group in trial(kind).optimizer.param_groups:
            assert isinstance(group["lr"], torch.Tensor)
            assert group["lr"].device == group["params"][0].device
            assert group["fused"]


@pytest.mark.parametrize("kind", [k for k in PLAIN if k != "sgd"])
def test_the_manifest_decides_betas_and_eps(trial, kind):
    (group, *_) = trial(kind, betas=(0.5, 0.75), eps=1e-3).optimizer.param_groups
    assert (group["betas"], group["eps"]) == ((0.5, 0.75), 1e-3)


def test_a_group_without_parameters_is_left_out(trial):
    parameters = tuple(trial("adamw").parameters)
    for section in (AdamW(), Adam(), SGD()):
        (group,) = section.build([Group(("a",), parameters, 0.1), Group((), (), 0.0)]).param_groups
        assert len(group["params"]) == len(parameters)
