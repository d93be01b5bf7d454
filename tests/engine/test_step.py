"""One optimizer step, held to the same step written plainly."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ratrain.engine.step import Precision, TrainStep
from ratrain.model.build import build
from ratrain.recipe.groups import group_parameters

LR = 1e-3


def batch(seed=0, rows=4, length=16):
    tokens = torch.randint(2048, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def step_of(manifest, *, micro_batch=4, lr=LR, dtype=torch.float32):
    model = build(manifest).to(dtype)
    groups = group_parameters(model, manifest.optim.weight_decay)
    precision = Precision(manifest.train.precision, model)
    step = TrainStep(model, manifest.optim, groups=groups, precision=precision, micro_batch=micro_batch)
    step.set_lr(lr)
    return step


def snapshot(step):
    """Every tensor that a step may change."""
    state = step.optimizer.state_dict()["state"]
    moments = {f"{i}|{key}": value for i, entry in state.items() for key, value in entry.items()}
    tensors = {**step.model.state_dict(), **step.precision.masters, **moments}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_steps_are_one_batch(tiny, micro_batch):
    """In float64: in fp32 the order of a sum decides the sign of the step of a weight whose gradient is nearly 0."""
    whole, parts = (step_of(tiny(), micro_batch=size, dtype=torch.float64) for size in (4, micro_batch))
    for seed in range(40):
        expected, loss = (step(*batch(seed)).loss for step in (whole, parts))
        # the sum of the losses is kept in fp32: a rounding of each part, and one of the whole
        torch.testing.assert_close(loss, expected, rtol=(4 // micro_batch + 1) * 2**-24, atol=0)
    # another order moves a gradient by about 1e-17, and so a weight by at most LR 1e-17 / eps = 1e-12 in each step
    torch.testing.assert_close(whole.parameters, parts.parameters, rtol=0, atol=1e-10)


def plainly(manifest, clip):
    """A step as anyone would write it, in float64; returns the parameters and first moments after it, and the norm."""
    model = build(manifest).double()
    decayed, kept = (list(g.parameters) for g in group_parameters(model, manifest.optim.weight_decay))
    decay = manifest.optim.weight_decay
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": decay}, {"params": kept, "weight_decay": 0}],
        lr=LR,
        betas=manifest.optim.betas,
        foreach=False,
    )
    tokens, targets = batch()
    model(tokens, targets).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    moments = {name: optimizer.state[p]["exp_avg"] for name, p in model.named_parameters()}
    return dict(model.named_parameters()), moments, norm


def moments_of(step):
    names = {p: name for name, p in step.precision.masters.items()}
    return {names[p]: state["exp_avg"] for p, state in step.optimizer.state.items()}


@pytest.mark.parametrize("clip", [0.1, 1e3])
def test_a_step_clips_and_updates_as_plain_torch_does(tiny, clip):
    manifest = tiny("v1", f"optim.clip={clip}")
    step = step_of(manifest, dtype=torch.float64)
    result = step(*batch())
    parameters, moments, norm = plainly(manifest, clip)
    assert 0.1 < norm < 1e3  # one clip bites, the other does not
    torch.testing.assert_close(result.norm.double(), norm, rtol=2**-24, atol=0)
    # of the gradient: the norm, the clip and their ratio are rounded to fp32, and torch divides by the norm + 1e-6
    share = 3 * 2**-24 + 1e-6 / norm.item()
    torch.testing.assert_close(moments_of(step), moments, rtol=share, atol=1e-15)
    torch.testing.assert_close(dict(step.model.named_parameters()), parameters, rtol=0, atol=LR * share)


def test_clip_0_never_clips(tiny):
    free, wide = step_of(tiny("gpt2", "optim.clip=0")), step_of(tiny("gpt2", "optim.clip=1e9"))
    for seed in range(3):
        assert free(*batch(seed)) == wide(*batch(seed))
    assert same(snapshot(free), snapshot(wide))


def spoil(step, value):
    """From now on one gradient holds `value`, until the returned hook is removed."""

    def strike(parameter):
        parameter.grad.view(-1)[3] = value

    return step.parameters[0].register_post_accumulate_grad_hook(strike)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize("clip", [1, 0])
def test_a_gradient_that_is_not_finite_leaves_every_bit_as_it_was(tiny, value, warm, clip):
    step, untouched = (step_of(tiny("v1", f"optim.clip={clip}")) for _ in range(2))
    for seed in range(warm):
        step(*batch(seed))
        untouched(*batch(seed))
    before = snapshot(step)
    hook = spoil(step, value)
    result = step(*batch(5))
    assert not result.norm.isfinite()
    assert same({name: snapshot(step)[name] for name in before}, before)
    hook.remove()
    # and the step after it is the one that would have been made without it, counters included
    assert step(*batch(6)) == untouched(*batch(6))
    assert same(snapshot(step), snapshot(untouched))


def test_bf16_optimises_fp32_masters_by_less_than_bf16_can_hold(tiny):
    step = step_of(tiny("v1", "train.precision=bf16"), lr=2e-6)
    before = snapshot(step)
    step(*batch())
    after = snapshot(step)
    name = "blocks.0.mlp.up.weight"
    master, copy = step.precision.masters[name], step.model.get_parameter(name)
    assert master.dtype == torch.float32
    assert copy.dtype == torch.bfloat16
    assert torch.equal(copy, master.bfloat16())
    assert (master != build(tiny("v1")).get_parameter(name)).any(1).all()
    resolution = (copy.abs().float() * 2**-9).clamp(min=1e-30)
    small = (after[name] - before[name]).abs() < resolution
    assert small.float().mean() > 0.9


def test_bf16_masters_start_as_the_fp32_weights(tiny):
    step, exact = step_of(tiny("v1", "train.precision=bf16")), build(tiny("v1"))
    assert same(dict(step.precision.masters), dict(exact.named_parameters()))


def test_bf16_keeps_norms_and_gates_in_fp32(tiny):
    model = step_of(tiny("v1", "train.precision=bf16")).model
    wide = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert wide == {n for n, _ in model.named_parameters() if "norm" in n or ".score.w_" in n}


@pytest.mark.parametrize("precision", ["bf16", "amp_bf16"])
def test_narrow_precisions_stay_near_fp32(tiny, precision):
    exact, narrow = step_of(tiny("v1")), step_of(tiny("v1", f"train.precision={precision}"))
    for seed in range(5):
        expected, loss = (step(*batch(seed)).loss for step in (exact, narrow))
        torch.testing.assert_close(loss, expected, rtol=2**-9, atol=0)  # of a loss of 7.6 nats, 0.015


def test_amp_keeps_fp32_weights_and_gradients(tiny):
    step = step_of(tiny("v1", "train.precision=amp_bf16"))
    step.backward(*batch())
    assert (
        {p.dtype for p in step.parameters}
        == {p.grad.dtype for p in step.parameters if p.grad is not None}
        == {torch.float32}
    )


def test_accumulation_in_bf16_adds_in_fp32(tiny):
    step = step_of(tiny("gpt2", "train.precision=bf16"), micro_batch=1)
    step.backward(*batch())
    assert {p.grad.dtype for p in step.parameters if p.grad is not None} == {torch.float32}
    assert all(copy.grad is None for copy in step.precision.copies.values())


class NothingIsReadBack(TorchDispatchMode):
    """Fails where a value on the device becomes a number in Python."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a step waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "amp_bf16"])
def test_a_step_never_waits_for_the_device(tiny, precision):
    step = step_of(tiny("v1", f"train.precision={precision}"), micro_batch=2)
    step(*batch())
    with NothingIsReadBack():
        step.set_lr(LR)
        step(*batch())
        with pytest.raises(AssertionError, match="waits for the device"):
            step.optimizer.param_groups[0]["lr"].item()


_USE = """
import resource, sys, torch
from ratrain.machine.device import keep_freed_memory
if len(sys.argv) == 2:
    keep_freed_memory()
for round in range(24):
    if round == 20:  # the heap has found its shape
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(1 << 24).fill_(1.0)  # 64 MiB: glibc learns by itself to keep what is below 32
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_memory_that_is_freed_is_not_given_back():
    """Else each step asks the system for it anew, page by page. In a process of its own: heaps remember."""

    def faults(*words):
        done = subprocess.run([sys.executable, "-c", _USE, *words], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("kept") < 1000
    assert faults() > 4 * 16_000  # the pages of four arrays: what the setting is there for
