"""Unified RA is GPT-2 to the bit while it is switched off, and while its gates are held at one."""

import pytest
import torch

from ratrain.config.read import find_manifest, read_source
from ratrain.config.resolve import resolve
from ratrain.config.schema import CompileSection
from ratrain.engine.step import Precision, TrainStep
from ratrain.machine.compile import compile_model
from ratrain.machine.device import set_determinism
from ratrain.model.build import build
from ratrain.recipe.groups import Group, group_parameters
from ratrain.registry import optim_kinds, patch_kinds

STEPS = 20


def manifest_of(name, *overrides):
    source = read_source(find_manifest(name), scale="tiny", overrides=overrides)
    return resolve(source, patches=patch_kinds(), optimizers=optim_kinds())


def closed(model):
    for name, buffer in model.named_buffers():
        if name.endswith(".s"):
            buffer.zero_()


def held_at_one(model):
    for name, parameter in model.named_parameters():
        if ".score." in name:
            parameter.data.fill_(1.0)


def keep(group, without):
    names = tuple(name for name in group.names if not any(part in name for part in without))
    parameters = dict(zip(group.names, group.parameters, strict=True))
    return Group(names, tuple(parameters[name] for name in names), group.weight_decay)


def trained(manifest, prepare, compiler, *, without=()):
    """Losses and final weights of a few steps; parameters in `without` stay outside the optimizer and the clip."""
    model = build(manifest)
    prepare(model)
    compile_model(model, compiler)
    groups = [keep(group, without) for group in group_parameters(model, 0.1)]
    step = TrainStep(model, manifest.optim, groups=groups, precision=Precision("fp32", model), micro_batch=4)
    losses = []
    for number in range(STEPS):
        step.set_lr(1e-3 * (number + 1) / STEPS)
        tokens = torch.randint(2048, (4, 33), generator=torch.Generator().manual_seed(number))
        losses.append(step(tokens[:, :-1], tokens[:, 1:]).loss.item())
    return losses, {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture(autouse=True)
def deterministic():
    torch._dynamo.reset()
    set_determinism("on", torch.device("cpu"))
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "compiler",
    [CompileSection(scope="off"), CompileSection(scope="block", backend="inductor")],
    ids=["eager", "inductor"],
)
def test_v1_switched_off_or_with_gates_at_one_is_v0_to_the_bit(compiler):
    base_losses, base = trained(manifest_of("v0"), lambda model: None, compiler)
    for prepare, without in ((closed, ()), (held_at_one, (".score.",))):
        losses, weights = trained(manifest_of("v1"), prepare, compiler, without=without)
        assert losses == base_losses
        assert all(torch.equal(weights[name], base[name]) for name in base)


def test_v1_switched_on_is_not_v0():
    compiler = CompileSection(scope="off")
    base_losses, _ = trained(manifest_of("v0"), lambda model: None, compiler)
    losses, _ = trained(manifest_of("v1"), lambda model: None, compiler)
    assert losses != base_losses
