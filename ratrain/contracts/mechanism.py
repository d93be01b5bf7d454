"""Contracts on the mechanism: it reduces to the base model, gets gradients, and states its FLOPs, probes and options
correctly."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from ratrain.config.schema import ActivationSection, Manifest, Section
from ratrain.contracts.perturbation import shake, without_gradient
from ratrain.contracts.registry import contract
from ratrain.contracts.states import (
    activate,
    activations,
    fitted,
    logits_of,
    loss_of,
    step_of,
    tokens_of,
    trained,
)
from ratrain.engine.parts.probes import Probes
from ratrain.errors import ManifestError
from ratrain.model.build import build, switches
from ratrain.model.count import count
from ratrain.model.gpt2 import GPT2
from ratrain.model.mechanism import offers, own_modules, that_offer


@contract
def every_parameter_gets_a_gradient(manifest: Manifest) -> None:
    model = trained(manifest, steps=2).double()  # a gate that starts at zero blocks other gradients in the first step
    loss_of(model, manifest).backward()
    dead = without_gradient(model.named_parameters())
    if kept := _kept_for_the_switch(model, manifest, dead):  # parts of the base that s = 1 leaves out
        activate(model, 0.5)
        model.zero_grad()
        loss_of(model, manifest).backward()
        dead = [name for name in dead if name not in kept]
        dead += without_gradient((name, p) for name, p in model.named_parameters() if name in kept)
    assert not dead, f"after two steps no gradient, or one that is not finite, reaches {', '.join(dead)}"


def _kept_for_the_switch(model: GPT2, manifest: Manifest, names: Sequence[str]) -> set[str]:
    """Returns those of the parameters that are the base's and at a site of a patch that opens during the run."""
    sections = {name: patch.under(manifest.activation).activation for name, patch in manifest.patch.items()}
    sites = [f"{site}." for site, name in model.claimed.items() if sections[name].kind != "at_once"]
    return {n for n in names if n.startswith(tuple(sites)) and n.rpartition(".")[0] in model.base_names}


@contract
def closed_it_is_the_base_model(manifest: Manifest) -> None:
    left = {name: patch.under(manifest.activation).closed() for name, patch in manifest.patch.items()}
    left = {name: patch for name, patch in left.items() if patch is not None}
    base_manifest = manifest.model_copy(update={"patch": left})
    open_for_good = sorted(name for name, patch in manifest.patch.items() if not _switched(fitted(manifest), name))
    assert all(name in left for name in open_for_good), (
        f"patch {', '.join(open_for_good)}: no module of it has an activation buffer `s`, with the base model at 0; "
        "a patch without that state has a closed() that returns the part that remains: `return self` if all does"
    )
    for shaken in (False, True):
        model, base = fitted(manifest), build(base_manifest)
        if shaken:
            shake(model)
            _share_weights(model, base)
        activate(model, 0.0)
        tokens = tokens_of(manifest, 2, 65)
        for training in (True, False):
            mine, its = (logits_of(one.train(training), tokens) for one in (model, base))
            torch.testing.assert_close(mine, its, rtol=0, atol=1e-6 * max(1.0, float(its.abs().max())))
        for one in (model, base):
            loss_of(one.train(), manifest).backward()
        own = dict(model.named_parameters())
        for name, parameter in base.named_parameters():
            if name in own:
                torch.testing.assert_close(own[name].grad, parameter.grad, rtol=0, atol=1e-6, msg=name)


def _switched(model: GPT2, patch: str) -> bool:
    """Returns whether a module of the patch has an activation buffer."""
    sites = [site for site, name in model.claimed.items() if name == patch]
    return any(next(activations(model.get_submodule(site)), None) is not None for site in sites)


def _share_weights(model: GPT2, base: GPT2) -> None:
    """Copies the model's weights into the base model, for every base module that a patch keeps under any name."""
    places = {path: name for name, path in model.base_names.items()}
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            path, _, leaf = name.rpartition(".")
            found = own.get(f"{places.get(path, path)}.{leaf}")
            if found is not None and found.shape == parameter.shape:
                parameter.copy_(found)


@contract
def its_flops_are_those_that_are_counted(manifest: Manifest) -> None:
    model = fitted(manifest)
    tokens = tokens_of(manifest, 1, manifest.model.block_size)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits_of(model, tokens)
    head = 2 * (manifest.model.padded_vocab - manifest.model.vocab_size) * manifest.model.n_embd
    stated = (count(model).forward_flops_per_token - head) * tokens.numel()
    counted = counter.get_total_flops()
    # a foreign module's are rounded to whole FLOPs per token
    slack = tokens.numel() * sum(bool(getattr(part, "constructed", ())) for _, part in own_modules(model)) / 2
    assert abs(counted - stated) <= slack, f"{counted:,} FLOPs, but it states {stated:,}; {_stating(model)}"


def _stating(model: GPT2) -> str:
    """Returns the message that lists the sites of patches with and without `flops_per_token`."""
    said: dict[bool, list[str]] = {True: [], False: []}
    for site, patch in model.claimed.items():
        parts = own_modules(model.get_submodule(site))
        said[any(offers(part, "flops_per_token") for _, part in parts)].append(f"{site} ({patch})")
    lines = [f"{', '.join(said[False])} has no flops_per_token(spec)"] if said[False] else []
    lines += (
        [f"flops_per_token(spec) of {', '.join(said[True])} states other products than it forms"] if said[True] else []
    )
    return " and ".join(lines)


@contract
def what_it_offers_to_be_looked_at_is_finite(manifest: Manifest) -> None:
    model = fitted(manifest)
    step = step_of(model, manifest, lr=1e-3)
    probes, tokens = Probes(model, step, on=True), tokens_of(manifest, 2, 66)
    step(tokens[:, :-1], tokens[:, 1:])
    for values in (probes.read(), probes.observe(tokens, step.precision)):
        for patch, probe, rows in ((p, name, rows) for p, named in values.items() for name, rows in named.items()):
            for row in filter(None, rows):
                assert len(row) in (1, manifest.model.n_head), f"{patch}: {probe} has {len(row)} values in a layer"
                assert all(map(math.isfinite, row)), f"{patch}: {probe} is {row}"


@contract
def every_option_does_something(manifest: Manifest) -> None:
    plain = _fingerprint(fitted(manifest))
    for name, patch in manifest.patch.items():
        for option, value in _alternatives(patch):
            try:
                other = type(patch).model_validate({**dict(patch), option: value})
                model = fitted(manifest.model_copy(update={"patch": {**manifest.patch, name: other}}))
            except (ValidationError, ManifestError):
                continue  # a refused value shows that the option is read
            assert _fingerprint(model) != plain, f"patch.{name}.{option} = {value!r} changes nothing"


def _alternatives(patch: Any) -> Iterator[tuple[str, Any]]:
    """Yields each option with other values: every other choice, the opposite, 2 n + 9 for an int, half of a float."""
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
            yield name, 2 * value + 9  # large enough to have an effect
        elif isinstance(value, float):
            yield name, value / 2 or 0.5


def _fingerprint(model: GPT2) -> tuple:
    """Returns all that an option can change: modules, shapes, initial values, outputs, gradients."""
    tokens = torch.randint(64, (1, 256), generator=torch.Generator().manual_seed(0))
    state = tuple((name, tuple(t.shape), t.double().sum().item()) for name, t in model.state_dict().items())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # at initial values attention is uniform and gates are equal
            parameter.normal_(std=0.3, generator=generator)
    annealed = [buffer for buffers in switches(model, "anneal").values() for buffer in buffers]
    for buffer in annealed:  # gradients at the start of the annealing, outputs at its end
        buffer.zero_()
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    for buffer in annealed:
        buffer.fill_(1.0)
    for part in that_offer((part for _, part in own_modules(model)), "settle"):  # state that is updated once a step
        part.settle(lambda tensor: tensor)
    gradients = sum(p.grad.double().abs().sum().item() for p in model.parameters() if p.grad is not None)
    return str(model), state, logits_of(model.eval(), tokens).double().sum().item(), gradients
