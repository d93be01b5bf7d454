"""Builds a model from a manifest: claims sites, replaces them, materialises, initialises by seed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from ratrain.config.schema import Manifest, ModelSpec
from ratrain.config.toml import dotted
from ratrain.errors import Fault, ManifestError, OptionError
from ratrain.model.gpt2 import GPT2
from ratrain.model.mechanism import offers, own_modules, that_offer
from ratrain.model.parametrisation import at_base, factors_of, refusals
from ratrain.registry import Patch


def build(manifest: Manifest, *, device: torch.device | str = "cpu") -> GPT2:
    """Builds the patched, initialised model in fp32 on `device`; on "meta" it has shapes only.

    Raises ManifestError with every fault: a site that does not exist, a site claimed twice, options that a patch
    refuses, tensors that reset_parameters does not fill, parts that do not transfer under `model.parametrisation`.
    """
    if faults := list(refusals(manifest)):
        raise ManifestError(faults)
    model, names = _declare(manifest)
    if manifest.model.parametrisation != "standard":
        model.factors = factors_of(model, _smaller(manifest), manifest, model.claimed)
    if torch.device(device).type == "meta":
        return model
    model.to_empty(device="cpu")
    for module, name in names.items():
        if offers(module, "construct"):
            _construct(module, model.claimed[name], seed=seed_of(manifest.seed.weights, name))
        _initialise(module, name, seed=manifest.seed.weights)
    _scale(model)
    if manifest.seed.twin == "ulp":
        nudge(model.wte.weight)
    return model.to(device)


def _declare(manifest: Manifest) -> tuple[GPT2, dict[nn.Module, str]]:
    """Returns the patched model on the meta device, and the name that seeds the draws of each of its modules.

    Raises ManifestError.
    """
    with torch.device("meta"):
        model = GPT2(manifest.model)
    model.z_loss = manifest.train.z_loss
    base_names = {id(module): name for name, module in model.named_modules()}
    patches = {name: patch.under(manifest.activation) for name, patch in manifest.patch.items()}
    replaced = replace_sites(model, patches)
    for site, name in model.claimed.items():
        module = cast("Any", model.get_submodule(site))
        if getattr(module, "gradual", None) is not None:
            section = manifest.patch[name].activation or manifest.activation
            module.gradual = section.over.amount > 0
    # a patch may hold a base module under a longer name: it keeps the initial weights of the unpatched model
    names = {module: base_names.get(id(module), name) for name, module in own_modules(model)}
    model.base_names = {
        name: base_names[id(module)] for name, module in model.named_modules() if id(module) in base_names
    }
    del replaced  # kept alive until here: new modules could otherwise reuse the ids of replaced ones
    return model, names


def _smaller(manifest: Manifest) -> GPT2:
    """Returns the model at the base's width, on the meta device. Raises ManifestError whose faults name that width."""
    small = at_base(manifest)
    try:
        return _declare(small)[0]
    except ManifestError as error:
        at = f"at the base's n_embd = {small.model.n_embd}, n_head = {small.model.n_head}"
        raise ManifestError([replace(fault, message=f"{at}: {fault.message}") for fault in error.faults]) from error


@torch.no_grad()
def _scale(model: GPT2) -> None:
    """Multiplies the initial values, which are those of the standard parametrisation, by the model's factors."""
    for name, factors in model.factors.items():
        if factors.init != 1:
            model.get_parameter(name).mul_(factors.init)


def replace_sites(model: GPT2, patches: Mapping[str, Patch]) -> dict[str, nn.Module]:
    """Claims every site of every patch, then replaces them in `model`; returns the replaced modules by site.

    Raises ManifestError.
    """
    claims, faults = claim_sites(model, patches)
    built: dict[str, nn.Module] = {}
    for site, name in claims.items():
        if any(f"{fault.key}.".startswith(f"patch.{name}.") for fault in faults):
            continue  # the same options fail on every site: one fault is enough
        try:
            with torch.device("meta"):
                module = _builder(patches[name].at(site), site)(model.get_submodule(site), model.spec)
            if not isinstance(module, nn.Module):
                raise TypeError(f"build returned {module!r}, which is not a module")
            built[site] = module
        except OptionError as error:
            faults.append(_option_fault(name, error))
        except ValueError as error:  # the patch refuses its options
            faults.append(Fault("", f"patch.{name}", str(error)))
        except Exception as error:
            faults.append(Fault("", f"patch.{name}", f"build fails on {site}: {type(error).__name__}: {error}"))
    if faults:
        raise ManifestError(list(dict.fromkeys(faults)))
    model.claimed = {site: claims[site] for site in built}
    parts = [part for module in built.values() for _, part in own_modules(module)]
    model.priced = that_offer(iter(parts), "penalty")
    return {site: _swap(model, site, module) for site, module in built.items()}


def switches(model: GPT2, buffer: str = "s") -> dict[str, list[torch.Tensor]]:
    """Returns the buffers named `buffer` of each patch of a built model, by patch name; by default the 0-d `s`."""
    found: dict[str, list[torch.Tensor]] = {}
    for site, name in model.claimed.items():
        parts = [part for _, part in own_modules(model.get_submodule(site))]
        found.setdefault(name, []).extend(
            tensor for part in parts for key, tensor in part.named_buffers(recurse=False) if key == buffer
        )
    return found


def claim_sites(model: nn.Module, patches: Mapping[str, Patch]) -> tuple[dict[str, str], list[Fault]]:
    """Returns the claiming patch's name by site, and a fault for every invalid claim."""
    claims: dict[str, str] = {}
    faults: list[Fault] = []
    sites = [name for name, _ in model.named_modules() if name]
    for name, patch in patches.items():
        patterns = list(patch.builders())
        for pattern in patterns:
            if not any(_matches(pattern, site) for site in sites):
                faults.append(Fault("", f"patch.{name}.target", f"{pattern!r} matches no part of the model"))
        for site in (site for site in sites if any(_matches(pattern, site) for pattern in patterns)):
            rival = next((s for s in claims if _overlap(s, site)), None)
            if rival is None:
                claims[site] = name
                continue
            what = f"{site} is claimed by patch.{claims[rival]} already" + (f" (as {rival})" if rival != site else "")
            faults.append(Fault("", f"patch.{name}", f"{what}; drop one with enabled = false"))
            break
    return claims, faults


def _builder(patch: Patch, site: str) -> Callable[[nn.Module, ModelSpec], nn.Module]:
    return next(build for pattern, build in patch.builders().items() if _matches(pattern, site))


def _matches(pattern: str, site: str) -> bool:
    """Whether `pattern` matches the site; a star matches one part of a dotted name."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", "[^.]+"), site) is not None


def _overlap(a: str, b: str) -> bool:
    return a == b or a.startswith(b + ".") or b.startswith(a + ".")


def _swap(model: nn.Module, site: str, module: nn.Module) -> nn.Module:
    parent, _, leaf = site.rpartition(".")
    owner = model.get_submodule(parent)
    old = owner.get_submodule(leaf)
    setattr(owner, leaf, module)
    return old


def _initialise(module: nn.Module, name: str, *, seed: int) -> None:
    """Fills the module's own tensors from a generator seeded by `seed` and `name` alone.

    Raises ManifestError if reset_parameters is missing or leaves a tensor unfilled.
    """
    own = dict(_own_tensors(module))
    if not own:
        return
    kind = type(module).__name__
    if not hasattr(module, "reset_parameters"):
        raise _not_initialised(name, f"{kind} has parameters or buffers but no reset_parameters(generator)")
    fillings = []
    for poison in (1, 0):  # unfilled elements keep the poison value, so that the two results differ
        with torch.no_grad():
            for tensor in own.values():
                tensor.fill_(float("nan") if tensor.is_floating_point() else poison)
            cast("Any", module).reset_parameters(torch.Generator().manual_seed(seed_of(seed, name)))
        fillings.append({key: tensor.clone() for key, tensor in own.items() if not tensor.is_floating_point()})
        if not fillings[0]:
            break
    left = [key for key, tensor in own.items() if tensor.is_floating_point() and tensor.isnan().any()]
    left += [key for key in fillings[0] if not fillings[0][key].equal(fillings[-1][key])]
    if left:
        advice = "; call super().reset_parameters(generator) in it" if "s" in left else ""
        raise _not_initialised(name, f"reset_parameters of {kind} does not fill {', '.join(left)}{advice}")


def _construct(module: nn.Module, patch: str, *, seed: int) -> None:
    """Lets the classes of foreign children fill them.

    Raises ManifestError if one cannot, or leaves a tensor unfilled.
    """
    try:
        cast("Any", module).construct(torch.Generator().manual_seed(seed))
    except OptionError as error:
        raise ManifestError([_option_fault(patch, error)]) from error
    for child in cast("Any", module).constructed:
        part = module.get_submodule(child)
        tensors = [*part.named_parameters(), *part.named_buffers()]
        if left := [key for key, tensor in tensors if tensor.is_floating_point() and tensor.isnan().any()]:
            message = f"the constructor of {type(part).__name__} leaves {', '.join(left)} without a value"
            raise ManifestError([_option_fault(patch, OptionError(message, "use"))])


def _option_fault(patch: str, error: OptionError) -> Fault:
    return Fault("", dotted(("patch", patch, *error.option)), str(error))


@torch.no_grad()
def nudge(weight: torch.Tensor) -> None:
    """Moves the first element to the next larger representable number."""
    first = weight.view(-1)[:1]
    first.copy_(torch.nextafter(first, torch.full_like(first, float("inf"))))


def _not_initialised(site: str, message: str) -> ManifestError:
    return ManifestError([Fault("", site, message)])


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def seed_of(*parts: object) -> int:
    """Derives a 63-bit seed from `parts` alone: the same on every machine and Python version."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
