"""A model trained through the kernels, by Triton's interpreter, is the model trained without them."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ratrain.config.schema import PruneSection
from ratrain.engine.step import Precision, TrainStep
from ratrain.kernels.placement import on_kernels
from ratrain.model.build import build
from ratrain.recipe.groups import group_parameters
from ratrain.recipe.prune.pruner import Pruner

rounding = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "rounding.py")))
SIZES = ("model.n_layer=2", "model.n_head=2", "model.n_embd=64", "model.block_size=40", "model.vocab_size=2048")
ROWS, LENGTH, LONGEST = 2, 40, 2048  # the longest sum is over the vocabulary


def losses(manifest, precision="fp32", steps=5, *, dtype=torch.float32, moved_by=None):
    """Of a few steps on one batch; with `moved_by`, a generator, weights are off as fp32 sums of LONGEST terms are."""
    model = build(manifest).to(dtype)
    step = TrainStep(
        model,
        manifest.optim,
        groups=group_parameters(model, manifest.optim.weight_decay),
        precision=Precision(precision, model),
        micro_batch=1,
    )
    step.set_lr(1e-3)
    tokens = torch.randint(2048, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    found = []
    torch.set_default_dtype(dtype)  # of the sum of the losses
    try:
        for _ in range(steps):
            for weight in step.parameters if moved_by else ():
                noise = torch.randn(weight.shape, generator=moved_by)
                weight.data.mul_(1 + rounding.spread(LONGEST) * noise)
            found.append(step(tokens[:, :-1], tokens[:, 1:]).loss)
    finally:
        torch.set_default_dtype(torch.float32)
    return torch.stack(found)


def exact_losses(manifest):
    """In float64, and how far those of fp32 may be from them: a mean is rounded, and so is all that the weights go
    through, which moves the losses as weights do that are a little off."""
    exact = losses(manifest, dtype=torch.float64)
    moved = [losses(manifest, dtype=torch.float64, moved_by=torch.Generator().manual_seed(seed)) for seed in range(3)]
    n = ROWS * LENGTH
    mean = rounding.of_sum(n, n * exact, n * exact.square()) / n
    return exact, mean + rounding.DEVIATIONS * (torch.stack(moved) - exact).square().mean(0).sqrt()


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("tied_ra", ()),
        ("v19", ()),
        ("v19", ("patch.kv_prune.mode=kv", "patch.kv_prune.sinks=2")),
        ("v15", ()),
    ],
)
def test_training_by_the_kernels_is_training_without(tiny, monkeypatch, name, overrides):
    manifest = tiny(name, *SIZES, "patch.kv_prune.block=16" if name in ("v15", "v19") else "optim.clip=1.0", *overrides)
    assert on_kernels(torch.empty(1))
    by_kernels = losses(manifest)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert not on_kernels(torch.empty(1))
    rounding.check(by_kernels, *exact_losses(manifest))
    assert by_kernels[-1] < by_kernels[0]


@pytest.mark.interpreter
def test_copies_that_the_kernel_writes_train_as_those_that_are_written_beside_it(tiny, monkeypatch):
    manifest = tiny("v0", *SIZES)
    by_kernel = losses(manifest, "bf16")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    beside = losses(manifest, "bf16")
    torch.testing.assert_close(by_kernel, beside, rtol=2**-8, atol=0)  # the rounding of bf16
    assert by_kernel[-1] < by_kernel[0] - 0.1


@pytest.mark.interpreter
def test_weights_that_are_pruned_are_zero_in_the_copies_too(tiny):
    manifest = tiny("v0", *SIZES)
    model = build(manifest)
    step = TrainStep(
        model,
        manifest.optim,
        groups=group_parameters(model, manifest.optim.weight_decay),
        precision=Precision("bf16", model),
        micro_batch=1,
    )
    pruner = Pruner(PruneSection.model_validate({"kind": "magnitude", "target": 0.5}), step.groups, step.optimizer)
    step.hooks.append(pruner)
    assert step.optimizer.publishes
    step.set_lr(1e-3)
    pruner.expect(0.5, last=True)
    tokens = torch.randint(2048, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    step(tokens[:, :-1], tokens[:, 1:])
    name = "blocks.0.mlp.up.weight"
    master, copy = step.precision.masters[name], step.precision.copies[name]
    assert 0.2 < (master == 0).float().mean() < 0.8
    assert torch.equal(copy, master.to(torch.bfloat16))
