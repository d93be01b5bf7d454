"""What every variant must keep true, as functions that take a small manifest and raise AssertionError.

`contracts()` finds them all; `ratrain verify` and the tests run them on every patch, also on one outside the package.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ratrain.config.schema import ActivationSection, CompileSection, Manifest, Section
from ratrain.engine.compile import GraphCounter, compile_model
from ratrain.engine.fitting import fit_briefly
from ratrain.engine.perturbation import batch_leak, random_tokens, suffix_leak, without_gradient
from ratrain.engine.probes import Probes
from ratrain.engine.step import Precision, TrainStep
from ratrain.errors import ManifestError
from ratrain.model.build import build
from ratrain.model.count import count
from ratrain.model.generate import decode
from ratrain.model.gpt2 import GPT2
from ratrain.recipe.groups import group_parameters

# overrides that make any manifest small: heads as wide as the laptop scale's, contexts beyond every block boundary
SMALL = ("model.n_layer=2", "model.n_head=2", "model.n_embd=64", "model.block_size=256", "model.dropout=0")

Contract = Callable[[Manifest], None]


def contracts() -> dict[str, Contract]:
    """Every contract by the claim it makes."""
    return dict(_CONTRACTS)


_CONTRACTS: dict[str, Contract] = {}


def _contract(check: Contract) -> Contract:
    _CONTRACTS[check.__name__.replace("_", " ")] = check
    return check


@_contract
def it_runs_forward_and_backward(manifest: Manifest) -> None:
    _loss(fitted(manifest), manifest).backward()


FIRST = next(iter(_CONTRACTS))  # without it no other can hold


@_contract
def no_position_sees_a_later_token(manifest: Manifest) -> None:
    model = fitted(manifest).double()
    for training in (True, False):
        model.train(training)
        for length in (8, 64, 65, 256):
            tokens = _tokens(manifest, 1, length)
            leak = suffix_leak(partial(_logits, model), tokens, manifest.model.vocab_size)
            assert leak is None, f"{_mode(training)}, {leak}"


@_contract
def no_sequence_sees_another(manifest: Manifest) -> None:
    model = fitted(manifest).double()
    tokens = _tokens(manifest, 2, 65)
    for training in (True, False):
        model.train(training)
        leaks = batch_leak(partial(_logits, model), tokens, manifest.model.vocab_size)
        assert not leaks, f"{_mode(training)}: changing one sequence of a batch changes the output of another"


@_contract
def loading_a_checkpoint_restores_the_outputs(manifest: Manifest) -> None:
    trained, fresh = fitted(manifest).eval(), build(_reseeded(manifest, 2)).eval()
    tokens = _tokens(manifest, 2, 65)
    assert not torch.equal(_logits(trained, tokens), _logits(fresh, tokens)), "the seed does not change the weights"
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(_logits(trained, tokens), _logits(fresh, tokens)), "the outputs differ after loading"


@_contract
def every_parameter_gets_a_gradient(manifest: Manifest) -> None:
    model = fitted(manifest).double()
    _loss(model, manifest).backward()
    dead = without_gradient(model.named_parameters())
    assert not dead, f"no gradient, or one that is not finite, reaches {', '.join(dead)}"


@_contract
def closed_it_is_the_base_model(manifest: Manifest) -> None:
    left = {name: patch.closed() for name, patch in manifest.patch.items()}
    left = {name: patch for name, patch in left.items() if patch is not None}
    model, base = fitted(manifest), build(manifest.model_copy(update={"patch": left}))
    switches = list(_activations(model))
    assert switches or left == manifest.patch, "no module has an activation buffer `s`"
    for switch in switches:
        switch.zero_()
    tokens = _tokens(manifest, 2, 65)
    torch.testing.assert_close(_logits(model, tokens), _logits(base, tokens), rtol=0, atol=1e-6)
    for one in (model, base):
        _loss(one, manifest).backward()
    own = dict(model.named_parameters())
    for name, parameter in base.named_parameters():
        if name in own:
            torch.testing.assert_close(own[name].grad, parameter.grad, rtol=0, atol=1e-6)


@_contract
def one_graph_each_to_train_and_to_evaluate_wherever_the_activation_stands(manifest: Manifest) -> None:
    torch._dynamo.reset()
    model, graphs = fitted(manifest), GraphCounter()
    compile_model(model, CompileSection(scope="model", backend="eager"))
    for activation in (0.0, 0.5, 1.0):
        for switch in _activations(model):
            switch.fill_(activation)
        model.train()
        _loss(model, manifest).backward()
        model.eval()
        with torch.no_grad():
            _loss(model, manifest)
    assert graphs.graphs == 2, f"{graphs.graphs} graphs; expected one to train and one to evaluate"


@_contract
def the_same_seed_gives_the_same_losses(manifest: Manifest) -> None:
    first, second = (_train(manifest, steps=3) for _ in range(2))
    assert first == second, f"two equal runs lost {first} and {second}"


@_contract
def training_lowers_the_loss(manifest: Manifest) -> None:
    losses = _train(manifest, steps=25)
    assert losses[-1] < losses[0] - 0.5, (
        f"25 steps on one batch lowered the loss from {losses[0]:.3f} to {losses[-1]:.3f}"
    )


@_contract
def bf16_stays_near_fp32(manifest: Manifest) -> None:
    lr = 1e-3  # at ten times that the loss overshoots, and what rounding did is lost in what the overshoot makes of it
    exact = _train(manifest, steps=3, lr=lr)
    for kind in ("bf16", "amp_bf16"):
        rounded = _train(manifest, steps=3, lr=lr, precision=kind)
        worst = max(abs(a - b) for a, b in zip(exact, rounded, strict=True))
        assert worst < 0.01, f"{kind} is {worst:.4f} nats off"


@_contract
def cached_decoding_equals_the_full_forward(manifest: Manifest) -> None:
    model = fitted(manifest).double().eval()
    tokens = _tokens(manifest, 1, 65)
    torch.testing.assert_close(decode(model, tokens), _logits(model, tokens), rtol=0, atol=1e-10)


@_contract
def its_flops_are_those_that_are_counted(manifest: Manifest) -> None:
    model = fitted(manifest)
    tokens = _tokens(manifest, 1, manifest.model.block_size)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _logits(model, tokens)
    head = 2 * (manifest.model.padded_vocab - manifest.model.vocab_size) * manifest.model.n_embd
    stated = (count(model).forward_flops_per_token - head) * tokens.numel()
    assert counter.get_total_flops() == stated, f"{counter.get_total_flops():,} FLOPs, but it states {stated:,}"


@_contract
def what_it_offers_to_be_looked_at_is_finite(manifest: Manifest) -> None:
    model = fitted(manifest)
    groups = group_parameters(model, manifest.optim.weight_decay)
    precision = Precision("fp32", model)
    step = TrainStep(model, manifest.optim, groups=groups, precision=precision, micro_batch=2)
    step.set_lr(1e-3)
    probes, tokens = Probes(model, step, on=True), _tokens(manifest, 2, 66)
    _, read = probes.read(torch.stack(step(tokens[:, :-1], tokens[:, 1:]))[None])
    for values in (read, probes.observe(tokens, precision)):
        for patch, probe, rows in ((p, name, rows) for p, named in values.items() for name, rows in named.items()):
            for row in filter(None, rows):
                assert len(row) in (1, manifest.model.n_head), f"{patch}: {probe} has {len(row)} values in a layer"
                assert all(map(math.isfinite, row)), f"{patch}: {probe} is {row}"


@_contract
def every_option_does_something(manifest: Manifest) -> None:
    plain = _fingerprint(fitted(manifest))
    for name, patch in manifest.patch.items():
        for option, value in _alternatives(patch):
            try:
                other = type(patch).model_validate({**dict(patch), option: value})
                model = fitted(manifest.model_copy(update={"patch": {**manifest.patch, name: other}}))
            except (ValidationError, ManifestError):
                continue  # refused: so it is read
            assert _fingerprint(model) != plain, f"patch.{name}.{option} = {value!r} changes nothing"


# -- what they are made of --------------------------------------------------------------------------------------


def fitted(manifest: Manifest) -> GPT2:
    """The model, with everything fitted that is not trained."""
    model = build(manifest)
    return fit_briefly(model, _tokens(manifest, 3, manifest.model.block_size))


def _tokens(manifest: Manifest, rows: int, length: int) -> Tensor:
    return random_tokens(manifest.model.vocab_size, rows, length)


def _logits(model: GPT2, tokens: Tensor) -> Tensor:
    torch.manual_seed(0)  # dropout falls alike
    with torch.no_grad():
        return model.logits(tokens)


def _loss(model: GPT2, manifest: Manifest) -> Tensor:
    tokens = _tokens(manifest, 2, 66)
    return model(tokens[:, :-1], tokens[:, 1:])


def _mode(training: bool) -> str:
    return "training" if training else "evaluating"


def _reseeded(manifest: Manifest, seed: int) -> Manifest:
    return manifest.model_copy(update={"seed": manifest.seed.model_copy(update={"init": seed})})


def _activations(model: nn.Module) -> Iterator[Tensor]:
    """The buffers that schedules move: 0 is the base model, 1 the mechanism."""
    return (buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] == "s")


def _train(manifest: Manifest, *, steps: int, lr: float = 1e-2, precision: str = "fp32") -> list[float]:
    """Losses of a few uncompiled steps on one batch."""
    model = fitted(manifest)
    groups = group_parameters(model, manifest.optim.weight_decay)
    step = TrainStep(model, manifest.optim, groups=groups, precision=Precision(precision, model), micro_batch=2)
    step.set_lr(lr)
    tokens = _tokens(manifest, 2, 66)
    return [float(step(tokens[:, :-1], tokens[:, 1:]).loss) for _ in range(steps)]


def _alternatives(patch: Any) -> Iterator[tuple[str, Any]]:
    """Each option with another value than it has: every other choice, the opposite, a good deal more, half."""
    for name, field in type(patch).model_fields.items():
        value = getattr(patch, name)
        if name == "target":
            continue
        if typing.get_origin(field.annotation) is Literal:
            yield from ((name, choice) for choice in typing.get_args(field.annotation) if choice != value)
        elif isinstance(value, Section) and not isinstance(value, ActivationSection):
            yield from ((name, value.model_copy(update={key: other})) for key, other in _alternatives(value))
        elif isinstance(value, bool):
            yield name, not value
        elif isinstance(value, int):
            yield name, 2 * value + 9  # far enough to matter
        elif isinstance(value, float):
            yield name, value / 2 or 0.5


def _fingerprint(model: GPT2) -> tuple:
    """What an option can change: modules, shapes, initial values, outputs, gradients."""
    tokens = torch.randint(64, (1, 256), generator=torch.Generator().manual_seed(0))
    state = tuple((name, tuple(t.shape), t.double().sum().item()) for name, t in model.state_dict().items())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # as they start, attention is uniform and gates are alike
            parameter.normal_(std=0.3, generator=generator)
    annealed = [buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] == "anneal"]
    for buffer in annealed:  # its gradients where that begins, its outputs where it ends
        buffer.zero_()
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    for buffer in annealed:
        buffer.fill_(1.0)
    parts: list[Any] = list(model.modules())
    for part in parts:
        if hasattr(part, "settle"):  # state that moves once a step
            part.settle(lambda tensor: tensor)
    gradients = sum(p.grad.double().abs().sum().item() for p in model.parameters() if p.grad is not None)
    return str(model), state, _logits(model.eval(), tokens).double().sum().item(), gradients
