"""Checks the arms of a study before training.

The checks find arms that see the future or other sequences, arms whose evaluation computes another model than the
trained one, arms that compute the same function as another arm, and arms whose shared weights begin with other values
than the baseline's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ratrain.ablation.arms import Arm, resolved
from ratrain.ablation.caveats import unlike_weights
from ratrain.ablation.plan import Plan, told_twins
from ratrain.config.identity import plain
from ratrain.config.parse import parse_override
from ratrain.config.schema import Manifest
from ratrain.contracts import SMALL, fitted
from ratrain.contracts.meaning import breaches
from ratrain.contracts.perturbation import random_tokens
from ratrain.errors import Fault, ManifestError
from ratrain.model.build import build, seed_of
from ratrain.model.digests import weight_digests
from ratrain.model.parametrisation import from_itself
from ratrain.registry import Patch

CHECKS = (
    "every arm in float64, small: no position, and no gradient, sees a later token; no sequence sees another",
    "every arm, small: evaluating computes what was trained, and no call changes the next",
    "no two arms compute the same function with the same gradients and train alike, unless they say so",
    "every arm begins with the baseline's values in the weights that they share",
)


def preflight(plan: Plan) -> tuple[str, ...]:
    """Runs the checks and returns their descriptions. Raises ManifestError with every fault."""
    arms = plan.of_role("base", "arm", "control")
    faults = [*_broken(plan, arms), *_disguised(plan, arms), *_unpaired(plan, arms)]
    if faults:
        raise ManifestError(faults)
    return CHECKS


def _small(plan: Plan, arm: Arm) -> Manifest | None:
    """Resolves the arm at the contracts' shapes, every mechanism open from the start; None if it rejects the shapes."""
    layers = [parse_override(key) for key in (*SMALL, "train.budget={steps=100}")]  # that may be less than a step there
    try:
        return from_itself(resolved(arm.source_of(*arm.seeds[0], *layers), plan.patches))
    except ManifestError:
        return None


def _broken(plan: Plan, arms: Sequence[Arm]) -> Iterator[Fault]:
    seen: dict[str, str | None] = {}
    for arm in arms:
        patches = arm.manifest.patch.values()
        if not patches or any(patch.leaks for patch in patches):  # plain GPT-2, or a patch that declares its leak
            continue
        manifest = _small(plan, arm) or arm.manifest
        model = repr((manifest.model, {name: _open(patch) for name, patch in manifest.patch.items()}))
        if model not in seen:
            seen[model] = next(breaches(manifest), None)
        if fault := seen[model]:
            yield Fault(plan.file, arm.name, f"{fault}; its losses are meaningless")


def _open(patch: Patch) -> Patch:
    """Returns the patch without its activation schedule, as the contracts test it."""
    return patch.model_copy(update={"activation": None})


@dataclass(frozen=True)
class _Traits:
    """Loss and gradient sizes of a model with seeded random weights; equal for two models of the same function."""

    loss: float
    gradients: tuple[tuple[str, float], ...]  # of the base's parameters, by name
    own: tuple[tuple[float, float], ...]  # initial value and gradient of a patch's parameters with nonzero gradient


def _disguised(plan: Plan, arms: Sequence[Arm]) -> Iterator[Fault]:
    """Yields a fault for each arm that computes and trains as an earlier arm does, in spite of another manifest."""
    seen: dict[tuple[str, _Traits], list[Arm]] = {}
    for arm in arms:
        manifest = _small(plan, arm)
        if manifest is None:
            continue
        alike = seen.setdefault((_recipe_beside_patches(arm.manifest), _traits(manifest)), [])
        other = next((other for other in alike if _switched_alike(arm, other) and not told_twins(arm, other)), None)
        if other:
            message = f"computes and trains the same as {other.name}; take one out"
            yield Fault(plan.file, arm.name, message)
        alike.append(arm)


def _recipe_beside_patches(manifest: Manifest) -> str:
    said = plain(manifest)
    sections = ("model", "data", "optim", "schedule", "train", "init", "eval", "prune")
    return json.dumps([said.get(name) for name in sections])


def _switched_alike(arm: Arm, other: Arm) -> bool:
    """Whether the mechanisms of the two arms have the same activation; true if either arm has no patch."""
    said = [[str(m.activation), *(str(p.activation) for p in m.patch.values())] for m in (arm.manifest, other.manifest)]
    return said[0] == said[1] or not (arm.manifest.patch and other.manifest.patch)


def _traits(manifest: Manifest) -> _Traits:
    model = fitted(manifest).double()
    named = dict(model.named_parameters())
    before = {name: float(parameter.detach().abs().sum()) for name, parameter in named.items()}
    base = {name: f"{model.base_names.get(path, '')}.{leaf}" for name, path, leaf in map(_split, named)}
    with torch.no_grad():
        for name, parameter in named.items():  # at the initial values attention is uniform and gates are equal
            # seeded by the name in the base; a patch's own by shape and initial value, since arms may name them
            # differently
            own = f"{tuple(parameter.shape)} {before[name]:.9g}"
            shared = base[name] if not base[name].startswith(".") else own
            generator = torch.Generator().manual_seed(seed_of("traits", shared))
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    tokens = random_tokens(manifest.model.vocab_size, 2, 66)
    torch.manual_seed(0)
    loss = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    moved = {name: _size(parameter) for name, parameter in named.items()}
    of_base = tuple(sorted((base[name], moved[name]) for name in named if not base[name].startswith(".")))
    own = tuple(sorted((before[n], moved[n]) for n in named if base[n].startswith(".") and moved[n]))
    return _Traits(float(loss.detach()), of_base, own)


def _split(name: str) -> tuple[str, str, str]:
    path, _, leaf = name.rpartition(".")
    return name, path, leaf


def _size(parameter: nn.Parameter) -> float:
    return 0.0 if parameter.grad is None else float(parameter.grad.abs().sum())


def _unpaired(plan: Plan, arms: Sequence[Arm]) -> Iterator[Fault]:
    """Yields a fault for each arm whose shared weights differ from the baseline's at the start, with the first
    seeds."""
    base = _beginning(arms[0].manifest)
    for arm in arms[1:]:
        if arm.manifest.seed.twin in ("init", "ulp") or arm.manifest.init != arms[0].manifest.init:
            continue
        unlike = unlike_weights(_beginning(arm.manifest), base)
        if unlike:
            more = f" and {len(unlike) - 1} more" if len(unlike) > 1 else ""
            message = f"begins with other values than {arms[0].name} in {unlike[0]}{more}, which they share"
            yield Fault(plan.file, arm.name, f"{message}; a patch keeps the modules that it wraps as they are")


def _beginning(manifest: Manifest) -> dict[str, str]:
    model = build(manifest)
    return weight_digests(dict(model.named_parameters()), model.base_names)
