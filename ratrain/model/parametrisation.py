"""Parametrisations under which the best learning rate stays the same as the model grows: muP and CompleteP.

Learning rate, init_std s, weight decay and Adam's eps are chosen at the shape `model.base`. With m_N = n_embd / base
n_embd, m_L = n_layer / base n_layer and m_in the growth of a parameter's own fan-in, for AdamW:

    parameter                            initial std   learning rate  decay      eps
    token and position tables, head      s             lr             0          eps / m_N
    vectors: gains, biases, gates        as always     lr             0          eps / m_N
    hidden matrices                      s/sqrt(m_in)  lr / m_in      wd m_in    eps / m_N
    matrices to a width that stays       s / m_in      lr / m_in      wd m_in    eps / m_N

    logits are divided by m_N, and attention scores are q . k sqrt(base head_dim) / head_dim.
    completep: branches are h + y / m_L, eps of the blocks' parameters is eps / (m_N m_L), and projections into the
    stream have s / sqrt(2 base n_layer) where GPT-2 has s / sqrt(2 n_layer).

The decay is decoupled: a step multiplies weights by 1 - lr decay, which stays that of the base. m_in is found from the
shapes of two models of one manifest, as it is and at the base's width. So it serves the matrices of every patch whose
modules declare `fan_in` (ratrain/model/mechanism.py); others are refused by name.
Sources: Yang et al. 2022, "Tensor Programs V", arXiv:2203.03466, table 8 and appendix B (decay, eps); Dey et al. 2025,
"Don't be lazy: CompleteP", arXiv:2505.01618, table 1 with alpha = 1, under which hidden learning rates ignore depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from ratrain.config.schema import READ_OF_BASE, Manifest
from ratrain.errors import Fault, ManifestError
from ratrain.model.mechanism import own_modules

_HEAD = "unembed.weight"  # of an untied head: its input grows, but the logits' factor accounts for that


@dataclass(frozen=True)
class Factors:
    """The factors of one parameter on its initial value, learning rate, weight decay and eps."""

    init: float = 1.0
    lr: float = 1.0
    decay: float = 1.0
    eps: float = 1.0


def at_base(manifest: Manifest) -> Manifest:
    """Returns the manifest at its base's width and number of heads, with its own depth."""
    spec = manifest.model
    assert spec.base is not None
    width = {"n_embd": spec.base.n_embd, "n_head": spec.base.n_head}
    return manifest.model_copy(update={"model": spec.model_copy(update=width)})


def from_itself(manifest: Manifest) -> Manifest:
    """Returns the manifest with its own shape as the base: every factor is 1, and no mechanism refuses its heads.

    Checks of a model's function take a small shape, to which the base of the real one does not belong.
    """
    spec = manifest.model
    if spec.base is None:
        return manifest
    base = spec.base.model_copy(update={key: getattr(spec, key) for key in READ_OF_BASE[spec.parametrisation]})
    return manifest.model_copy(update={"model": spec.model_copy(update={"base": base})})


def refusals(manifest: Manifest) -> Iterator[Fault]:
    """Yields a fault for each part of a manifest whose learning rates do not transfer by these rules."""
    if manifest.model.parametrisation == "standard":
        return
    for name, patch in manifest.patch.items():
        if patch.transfers:
            yield _fault(f"patch.{name}", manifest, patch.transfers)
    if not manifest.optim.transfers:
        kind = type(manifest.optim).kind
        what = f"{kind} has other rules than AdamW with decoupled decay, for which these are; take optim.kind = 'adamw'"
        yield _fault("optim.kind", manifest, what)
    if manifest.init.weights is not None:
        yield _fault("init.weights", manifest, "released weights were drawn by another rule")


def factors_of(model: nn.Module, base: nn.Module, manifest: Manifest, claimed: Mapping[str, str]) -> dict[str, Factors]:
    """Returns the factors of every parameter of `model` by name; `base` is the model of `at_base`, on any device.

    `claimed` has the name of a patch by site. Raises ManifestError, located at the patch, if parameters of a patch grow
    with the width and declare no fan-in.
    """
    spec, stay = manifest.model, dict(base.named_parameters())
    before = dict(own_modules(base))
    owners = {id(p): (name, module, key) for name, module in own_modules(model) for key, p in _own(module)}
    found: dict[str, Factors] = {}
    faults = dict(_other_scales(model, manifest, claimed))  # one for each patch
    for name, parameter in model.named_parameters():
        depth = spec.depth_growth if name.startswith("blocks.") else 1.0
        eps = 1 / (spec.width_growth * depth)
        try:
            if id(parameter) not in owners or name not in stay or stay[name].dim() != parameter.dim():
                raise _UnknownFanInError("is not there in the same form at the base's width")
            site, module, key = owners[id(parameter)]
            shape, small = parameter.shape, stay[name].shape
            dim = None if name == _HEAD else _fan_in(module, key, grows=shape != small)
            found[name] = Factors(eps=eps) if dim is None else _matrix(shape, small, dim, eps)
            drawn, at_base = getattr(module, "std", None), getattr(before[site], "std", None)
            if dim is not None and drawn and at_base:  # a deviation that follows the width: that of the base counts
                found[name] = replace(found[name], init=found[name].init * (at_base / drawn))
        except _UnknownFanInError as error:
            place = next((f"patch.{patch}" for at, patch in claimed.items() if f"{name}.".startswith(f"{at}.")), name)
            faults.setdefault(place, _fault(place, manifest, f"{name} {error}"))
    if faults:
        raise ManifestError(list(faults.values()))
    return found


def _other_scales(model: nn.Module, manifest: Manifest, claimed: Mapping[str, str]) -> Iterator[tuple[str, Fault]]:
    """Yields place and fault of the patches that compute scores by a scale of their own, if that is not the base's."""
    scale = manifest.model.score_scale
    for site, patch in claimed.items() if scale is not None else ():
        scores = site.rpartition(".")[2] in ("core", "attn") or site.count(".") == 1  # a core, an attention, a block
        if scores and getattr(model.get_submodule(site), "scale", None) != scale:
            why = f"{site} scales scores by itself, so that n_embd / n_head must be that of model.base"
            yield f"patch.{patch}", _fault(f"patch.{patch}", manifest, why)


class _UnknownFanInError(Exception):
    """The fan-in of a parameter cannot be known; the message continues its name."""


def _own(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters(recurse=False)


def _fan_in(module: nn.Module, key: str, *, grows: bool) -> int | None:
    """Returns the dimension over which a parameter sums its inputs; None for one that scales, shifts or picks."""
    declared: Mapping[str, int | None] = getattr(module, "fan_in", {})
    shape = list(module.get_parameter(key).shape)
    if key in declared or len(shape) < 2 or not grows:
        return declared.get(key)
    kind = type(module).__name__
    raise _UnknownFanInError(
        f"{shape} grows with the width, and {kind}.fan_in does not say along which dimension it sums its inputs (None: "
        "along none)"
    )


def _matrix(shape: Sequence[int], small: Sequence[int], dim: int, eps: float) -> Factors:
    """Returns the factors of a parameter whose fan-in is dimension `dim`, with `small` its shape at the base."""
    growth = shape[dim] / small[dim]
    widens = any(a != b for at, (a, b) in enumerate(zip(shape, small, strict=True)) if at != dim)
    return Factors(init=growth**-0.5 if widens else 1 / growth, lr=1 / growth, decay=growth, eps=eps)


def _fault(key: str, manifest: Manifest, why: str) -> Fault:
    return Fault("", key, f"does not transfer under model.parametrisation = {manifest.model.parametrisation!r}: {why}")
