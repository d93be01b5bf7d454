"""What every optimizer must keep true. A new kind is covered the moment its file exists."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ratrain.config.schema import OptimSection
from ratrain.engine.step import Precision, TrainStep
from ratrain.model.build import build
from ratrain.recipe.groups import Group, group_parameters
from ratrain.registry import optim_kinds

OPTIMIZERS: Any = optim_kinds()
KINDS = sorted(OPTIMIZERS)
CASES = [
    *((kind, {}) for kind in KINDS),
    ("sgd", {"momentum": 0.0}),
    ("sgd", {"nesterov": True}),
    *(("adamwprune", {"base": base}) for base in ("adam", "adamwadv", "adamwspam")),
    # something happens within a few steps: moments are reset after the 5th and the 10th, spikes are cut
    ("adamwspam", {"theta": 2.0, "interval": 5, "warmup": 3, "grace": 2, "spike_z": 0.5, "spike_window": 12}),
    ("spam_legacy", {"theta": 2.0, "interval": 10, "warmup": 6, "clip_spikes": True, "spike_z": 0.5}),
    ("sinkgd", {"rest_lr": 0.5}),
    ("sinkgd_legacy", {"iterations": 0}),
    ("muon", {"nesterov": False, "newton_schulz": "bf16"}),
]
case = pytest.mark.parametrize(("kind", "options"), CASES, ids=[f"{kind}-{i}" for i, (kind, _) in enumerate(CASES)])
each = pytest.mark.parametrize("kind", KINDS)


def same(a, b, *, but=()):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a if key not in but)


@pytest.mark.parametrize(("kind", "options"), [c for c in CASES if "clip_spikes" not in c[1]])  # that cuts before
def test_a_gradient_is_clipped_as_if_it_had_been_divided_before(trial, kind, options):
    scaled, divided = trial(kind, **options), trial(kind, **options, clip=0.0)
    for seed in range(14):
        gradients = scaled.gradients(seed)
        scaled.step(gradients, scale=4, skip=0)
        divided.step([g / 4 for g in gradients])
    apart = {name for name in scaled.bits() if name.startswith("own norms")}
    assert same(scaled.bits(), divided.bits(), but=apart)


@each
def test_a_small_gradient_is_left_as_it_is(trial, kind):
    told, alone = trial(kind), trial(kind)
    told.steps(range(4), scale=1, skip=0)
    alone.steps(range(4))
    assert same(told.bits(), alone.bits())


@each
def test_a_gradient_is_left_clipped(trial, kind):
    """Probes show the gradients of gates after the step."""
    one = trial(kind)
    one.steps([0], scale=4, skip=0)
    for parameter, gradient in zip(one.parameters, one.gradients(0), strict=True):
        torch.testing.assert_close(parameter.grad, gradient / 4)


@case
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("warm", [0, 4, 12])
def test_a_step_that_is_skipped_leaves_every_bit(trial, kind, options, value, warm):
    one = trial(kind, **options)
    with torch.no_grad():
        for parameter in one.parameters:
            parameter.view(-1)[0] = -0.0
    one.steps(range(warm), scale=1, skip=0)
    with torch.no_grad():
        for parameter in one.parameters:
            parameter.view(-1)[1] = -0.0
    before = one.bits()
    gradients = one.gradients(99)
    gradients[0][1, 1] = gradients[4][2] = value
    one.step(gradients, scale=value, skip=1)
    after = one.bits()
    assert same({name: after[name] for name in before}, before, but={"own calls"})
    assert all(not after[name].any() for name in after.keys() - before.keys())  # state that is born is born empty
    one.steps([100], scale=1, skip=0)
    assert all(p.isfinite().all() for p in one.parameters)


@each
@pytest.mark.parametrize("warm", [0, 3])
def test_the_step_after_one_that_is_skipped_is_the_one_without_it(trial, kind, warm):
    one, untouched = trial(kind), trial(kind)
    for each_of in (one, untouched):
        each_of.steps(range(warm), scale=2, skip=0)
    one.step([torch.full_like(g, math.nan) for g in one.gradients(50)], scale=math.nan, skip=1)
    for each_of in (one, untouched):
        each_of.steps([60, 61], scale=2, skip=0)
    assert same(one.bits(), untouched.bits(), but={"own calls"})


@case
@pytest.mark.parametrize("at", [3, 5, 11])
def test_it_goes_on_from_its_state_to_the_bit(trial, kind, options, at):
    one = trial(kind, **options)
    one.steps(range(at), scale=1.5, skip=0)
    other = one.again(kind, **options)
    assert same(one.bits(), other.bits())
    for each_of in (one, other):
        each_of.steps(range(at, 16), scale=1.5, skip=0)
    assert same(one.bits(), other.bits())


@case
def test_the_learning_rate_stays_one_tensor_on_the_device_of_the_parameters(trial, kind, options):
    one = trial(kind, **options)
    rates = [group["lr"] for group in one.optimizer.param_groups]
    for lr in (0.5, 2.0**-20, 0.0) * 4:
        one.step(one.gradients(0), lr=lr, scale=1, skip=0)
        for group, tensor in zip(one.optimizer.param_groups, rates, strict=True):
            assert group["lr"] is tensor
            assert (tensor.dim(), tensor.device) == (0, group["params"][0].device)
            assert tensor == lr


@each
def test_a_learning_rate_of_zero_moves_nothing(trial, kind):
    one = trial(kind)
    before = [p.detach().clone() for p in one.parameters]
    one.step(one.gradients(0), lr=0.0)
    torch.testing.assert_close([p.detach() for p in one.parameters], before, rtol=0, atol=0)


@case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_parameter_goes_downhill(trial, kind, options, dtype):
    one = trial(kind, dtype=dtype, **options, weight_decay=0.0)
    for seed in range(7):  # another gradient each time: the first step after a reset knows no other
        fresh = trial(kind, dtype=dtype, **options, weight_decay=0.0)
        fresh.steps([seed], lr=1e-3)
        for before, after, g in zip(one.parameters, fresh.parameters, fresh.gradients(seed), strict=True):
            assert ((after - before) * g).sum() < 0
            assert after.dtype == dtype


@case
def test_what_is_zero_stays_zero(trial, kind, options):
    one = trial(kind, **options)
    zero = [torch.zeros_like(p, dtype=torch.bool) for p in one.parameters]
    for mask in zero:
        mask.view(-1)[::3] = True
    with torch.no_grad():
        for parameter, mask in zip(one.parameters, zero, strict=True):
            parameter.masked_fill_(mask, 0)
    for seed in range(12):
        pairs = zip(one.gradients(seed), zero, strict=True)
        one.step([gradient.masked_fill(mask, 0) for gradient, mask in pairs], scale=1.25, skip=0)
    tensors = [one.parameters, *(one.state(key) for key in one.optimizer.state[one.parameters[0]] if key != "step")]
    stays = all((t[mask] == 0).all() for row in tensors for t, mask in zip(row, zero, strict=False))
    assert stays == one.optimizer.elementwise


def test_only_muon_mixes(trial):
    assert [kind for kind in KINDS if not trial(kind).optimizer.elementwise] == ["muon"]


class NothingIsReadBack(TorchDispatchMode):
    """Fails where a value on the device becomes a number in Python."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a step waits for the device"
        return func(*args, **(kwargs or {}))


@case
def test_a_step_never_waits_for_the_device(trial, kind, options):
    one = trial(kind, **options)
    with NothingIsReadBack():
        one.steps(range(12), scale=1.5, skip=0)
        with pytest.raises(AssertionError, match="waits for the device"):
            one.optimizer.param_groups[0]["lr"].item()


@each
def test_a_group_without_parameters_is_left_out(kind):
    section, parameter = OPTIMIZERS[kind](), nn.Parameter(torch.ones(3, 2))
    for groups in (
        [Group(("a",), (parameter,), 0.1, matrices=True), Group((), (), 0.0)],
        [Group((), (), 0.1, matrices=True), Group(("a",), (parameter,), 0.0)],
    ):
        optimizer = section.build(groups)
        (group,) = optimizer.param_groups
        assert group["params"] == [parameter]
        parameter.grad = torch.ones(3, 2)
        optimizer.step()


@each
def test_parameters_are_numbered_in_the_order_of_the_groups(trial, kind):
    one = trial(kind)
    one.steps([0])
    saved = one.optimizer.state_dict()
    assert [i for group in saved["param_groups"] for i in group["params"]] == list(range(len(one.parameters)))
    listed = [p for group in one.optimizer.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(listed, one.parameters, strict=True))
    assert [group["weight_decay"] for group in saved["param_groups"]] == [OPTIMIZERS[kind]().weight_decay, 0.0]


@each
def test_state_is_tensors_in_the_type_of_the_parameters(trial, kind):
    one = trial(kind, dtype=torch.float32)
    one.steps([0])
    for entry in one.optimizer.state.values():
        assert all(isinstance(value, torch.Tensor) and value.dtype == torch.float32 for value in entry.values())
    assert all(isinstance(tensor, torch.Tensor) for tensor in one.optimizer.own.values())
    assert set(one.optimizer.tallies) <= one.optimizer.own.keys()


@each
def test_matrices_have_moments_where_the_kind_says_so(trial, kind):
    one = trial(kind)
    one.steps([0])
    entries = [one.optimizer.state[p] for p in one.parameters if p.dim() == 2][:3]
    assert all(({"exp_avg", "exp_avg_sq"} <= entry.keys()) == OPTIMIZERS[kind].moments for entry in entries)


@case
def test_a_parameter_without_a_gradient_is_not_touched(trial, kind, options):
    one = trial(kind, **options)
    before = [p.detach().clone() for p in one.parameters]
    for seed in range(12):
        one.step([None if i in (0, 4) else g for i, g in enumerate(one.gradients(seed))], scale=1.5, skip=0)
    for i, (parameter, start) in enumerate(zip(one.parameters, before, strict=True)):
        assert torch.equal(parameter, start) == (i in (0, 4))


@each
def test_every_option_of_its_own_says_what_it_does(kind):
    fields = OPTIMIZERS[kind].model_fields
    assert all(field.description for name, field in fields.items() if name not in OptimSection.model_fields)


@each
def test_a_model_learns_a_batch_under_it(tiny, kind):
    manifest, section = tiny("v1"), OPTIMIZERS[kind]()
    model = build(manifest)
    groups = group_parameters(model, section.weight_decay)
    step = TrainStep(model, section, groups=groups, precision=Precision("fp32", model), micro_batch=4)
    step.set_lr(3e-3)
    tokens = torch.randint(2048, (4, 17), generator=torch.Generator().manual_seed(0))
    losses = [float(step(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()).loss) for _ in range(20)]
    assert losses[-1] < losses[0] - (0.01 if kind in ("sgd", "sinkgd_legacy") else 0.5)
    assert all(torch.isfinite(p).all() for p in step.parameters)


@each
def test_what_is_decayed_need_not_be_a_matrix(kind):
    shapes = ((3, 2), (4,), (2, 3, 2), ())
    parameters = tuple(nn.Parameter(torch.ones(shape)) for shape in shapes)
    optimizer = OPTIMIZERS[kind]().build([Group(tuple("abcd"), parameters, 0.5, matrices=True)])
    optimizer.param_groups[0]["lr"].fill_(0.5)
    for _ in range(2):
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.full_like(parameter, i + 1.0)
        optimizer.step()
    assert all((p < 1).all() for p in parameters)


@pytest.mark.parametrize("kind", ["muon", "sinkgd"])
def test_what_is_no_matrix_is_left_to_adamw(kind):
    parameters = tuple(nn.Parameter(torch.ones(shape)) for shape in ((3, 2), (4,), (2, 3, 2)))
    optimizer = OPTIMIZERS[kind]().build([Group(tuple("abc"), parameters, 0.1, matrices=True)])
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert ["exp_avg" in optimizer.state[p] for p in parameters] == [False, True, True]
