"""Resolves a merged manifest file to a `Manifest`, or raises all of its faults at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from ratrain.checksum import sha256_of
from ratrain.config.find import did_you_mean
from ratrain.config.read import Source
from ratrain.config.recall import RECALL, SYMBOLS, room_faults
from ratrain.config.schema import ActivationSection, Manifest, OneOf, OptimSection
from ratrain.config.toml import dotted
from ratrain.config.validation import Key, fault_at, faults_of, key_homes, model_in, shown
from ratrain.config.weights import weight_files, weights_path
from ratrain.errors import Fault, ManifestError, OptionError

DEFAULT_OPTIM = "adamw"
VOCAB_SIZES = {"gpt2": 50257, "shakespeare2k": 2048}
_FOLDERS = {
    "optimizer": "kinds are the files of ratrain/recipe/optim",
    "patch": "kinds are the files of ratrain/patches, of patches/ beside the manifest, and of --patches DIR",
}


def resolve(source: Source, *, patches: Mapping[str, type], optimizers: Mapping[str, type]) -> Manifest:
    """Resolves `source` to a manifest.

    `patches` and `optimizers` map a kind to the class of its options; a class is looked up only if it is named. Raises
    one ManifestError with every fault, those of the requested file first; MissingError or DataError if the initial
    weights cannot be read.
    """
    if {"arm", "arms"} & {*source.tree}:
        kind, option = ("a ladder", "--ladder") if "rungs" in source.tree else ("an ablation manifest", "--ablate")
        message = f"this is {kind}; run ratrain {option} with it"
        raise ManifestError([Fault(source.manifest, "", message)])
    faults: list[Fault] = []
    manifest = _sections(source, faults)
    optim = _optim(source, optimizers, faults)
    built = _patches(source, patches, faults)
    if manifest is not None:
        sound = {name: patch for name, patch in built.items() if patch is not None}
        manifest = manifest.model_copy(update={"optim": optim, "patch": sound})
        faults += _cross_checks(manifest, source)
    if faults or manifest is None:
        raise ManifestError(_in_file_order(faults, source))
    return _with_digest(manifest)


def with_kinds(
    manifest: Manifest, source: Source, *, patches: Mapping[str, type], optimizers: Mapping[str, type]
) -> Manifest:
    """Returns a resolved manifest of `source` with options of other classes of the same kinds. Raises ManifestError."""
    faults: list[Fault] = []
    optim, built = _optim(source, optimizers, faults), _patches(source, patches, faults)
    if faults:
        raise ManifestError(_in_file_order(faults, source))
    return manifest.model_copy(update={"optim": optim, "patch": built})


def tokens_per_step(manifest: Manifest) -> int:
    """Returns the tokens of one optimizer step."""
    return manifest.train.batch * manifest.model.block_size


def steps_total(manifest: Manifest) -> int | None:
    """Returns the steps of the whole run, a token budget rounded up to whole steps; None if the budget is time."""
    budget = manifest.train.budget
    if budget.tokens is not None:
        return -(-budget.tokens // tokens_per_step(manifest))
    return budget.steps


def _with_digest(manifest: Manifest) -> Manifest:
    """Adds the SHA-256 of the initial weights, if the manifest names weights without one."""
    init = manifest.init
    if init.weights is None or init.sha256 is not None:
        return manifest
    sha256 = sha256_of(weight_files(weights_path(init.weights)))
    return manifest.model_copy(update={"init": init.model_copy(update={"sha256": sha256})})


def _sections(source: Source, faults: list[Fault]) -> Manifest | None:
    """Validates all sections except optim and patch, which have kinds and stay empty."""
    return _validated(Manifest, {**source.tree, "optim": {}, "patch": {}}, (), source, faults)


def _optim(source: Source, kinds: Mapping[str, type], faults: list[Fault]) -> BaseModel | None:
    return _of_kind(("optim",), source.tree.get("optim", {}), DEFAULT_OPTIM, "optimizer", kinds, source, faults)


def _patches(source: Source, kinds: Mapping[str, type], faults: list[Fault]) -> dict[str, BaseModel | None]:
    table = source.tree.get("patch", {})
    if not isinstance(table, dict):
        faults.append(fault_at(source, ("patch",), f"expected a table, got {shown(table)}"))
        return {}
    return {name: _patch(name, options, kinds, source, faults) for name, options in table.items()}


def _patch(name: str, options: Any, kinds: Mapping[str, type], source: Source, faults: list[Fault]) -> Any:
    """Returns a patch that knows the folders of the manifest's files; None after a fault."""
    at = ("patch", name)
    found: Any = _of_kind(at, options, name, "patch", kinds, source, faults)
    try:
        if hasattr(found, "beside"):
            found = found.beside(list(dict.fromkeys(file.parent for file in reversed(source.files))))
    except OptionError as error:
        faults.append(fault_at(source, (*at, *error.option), str(error)))
        return None
    return found


def _of_kind(
    at: Key, options: Any, default: str, family: str, kinds: Mapping[str, type], source: Source, faults: list[Fault]
) -> BaseModel | None:
    if not isinstance(options, dict):
        faults.append(fault_at(source, at, f"expected a table, got {shown(options)}"))
        return None
    kind = options.get("kind", default)
    key = (*at, "kind") if "kind" in options else at
    if not isinstance(kind, str):
        faults.append(fault_at(source, key, f"expected a string, got {shown(kind)}"))
        return None
    if kind not in kinds:
        near = did_you_mean(kind, kinds)
        faults.append(fault_at(source, key, f"no kind of {family} is called {kind!r}{near} ({_FOLDERS[family]})"))
        return None
    rest = {name: value for name, value in options.items() if name != "kind"}
    return _validated(kinds[kind], rest, at, source, faults)


def _newest(model: type, tree: Any, at: Key, source: Source) -> Any:
    """Drops the inherited keys of every OneOf table: those of layers below the newest that sets one of its keys."""
    if not isinstance(tree, dict):
        return tree
    if issubclass(model, OneOf):
        newest = source.origins[dotted(at)].layer
        return {name: value for name, value in tree.items() if source.origins[dotted((*at, name))].layer == newest}
    kept = dict(tree)
    for name, info in model.model_fields.items():
        inner = model_in(info.annotation)
        if inner and name in kept:
            kept[name] = _newest(inner, kept[name], (*at, name), source)
    return kept


def _validated(model: type, tree: Mapping[str, Any], at: Key, source: Source, faults: list[Fault]) -> Any:
    try:
        # validated as JSON: strict mode then accepts a list for a tuple
        return model.model_validate_json(json.dumps(_newest(model, tree, at, source)))
    except ValidationError as error:
        faults += faults_of(error, source, model, at=at, homes=_homes())
        return None


def _homes() -> dict[str, list[str]]:
    homes = key_homes(Manifest)
    for name in OptimSection.model_fields:
        homes.setdefault(name, []).append("optim")
    return homes


def _cross_checks(manifest: Manifest, source: Source) -> list[Fault]:
    """Returns the faults of keys that are valid alone but not together."""
    found = [
        *_init_faults(manifest),
        *_data_faults(manifest),
        *_schedule_faults(manifest),
        *_activation_faults(manifest),
        *_prune_faults(manifest),
    ]
    budget, per_step = manifest.train.budget, tokens_per_step(manifest)
    if budget.tokens is not None and budget.tokens < per_step:
        sizes = f"{manifest.train.batch} x {manifest.model.block_size} = {per_step}"
        found.append((("train", "budget", "tokens"), f"must be at least one step of {sizes}, got {budget.tokens}"))
    return [fault_at(source, key, message) for key, message in found]


def _data_faults(manifest: Manifest) -> Iterator[tuple[Key, str]]:
    """Yields faults of a tokenizer that does not fit the vocabulary or the source, and of rows without room."""
    data, spec = manifest.data, manifest.model
    if data.is_recall != (data.tokenizer == SYMBOLS):
        wanted = repr(SYMBOLS) if data.is_recall else " or ".join(map(repr, VOCAB_SIZES))
        meant = "" if data.is_recall else did_you_mean(data.source, RECALL)
        yield ("data", "tokenizer"), f"source {data.source!r} needs {wanted}, got {data.tokenizer!r}{meant}"
        return
    size = VOCAB_SIZES.get(data.tokenizer, spec.vocab_size)
    if spec.vocab_size != size:
        message = f"must be {size}, the size of tokenizer {data.tokenizer!r}, got {spec.vocab_size}"
        yield ("model", "vocab_size"), message
    if data.is_recall:
        sizes = {"block_size": spec.block_size, "vocab_size": spec.vocab_size}
        for key, message in room_faults(data.source, pairs=data.pairs, distance=data.distance, **sizes):
            yield ("data", key), message


def _init_faults(manifest: Manifest) -> Iterator[tuple[Key, str]]:
    """Yields a fault for a twin by other initial weights if init.weights gives all weights."""
    if manifest.init.weights is not None and manifest.seed.twin == "init" and not manifest.patch:
        yield ("seed", "twin"), "'init' draws other initial weights, but init.weights gives all of them"


def _schedule_faults(manifest: Manifest) -> Iterator[tuple[Key, str]]:
    """Yields faults of a schedule that does not fit into the budget."""
    warmup, total, decay = manifest.schedule.warmup, steps_total(manifest), manifest.schedule.decay
    if warmup.steps is not None and total is None:
        message = "the budget is in seconds, so its number of steps is unknown; expected { fraction = ... }"
        yield ("schedule", "warmup", "steps"), message
    elif warmup.steps is not None and total is not None and warmup.steps >= total:
        yield ("schedule", "warmup", "steps"), f"must be below the budget of {total} steps, got {warmup.steps}"
    elif manifest.schedule.kind == "wsd":
        room = 1 - (warmup.fraction or (warmup.steps or 0) / (total or 1))
        if decay > room:
            yield ("schedule", "decay"), f"must leave room for the warm-up: at most {room:.3g}, got {decay}"


def _prune_faults(manifest: Manifest) -> Iterator[tuple[Key, str]]:
    """Yields faults of pruning that does not fit into the budget or to the optimizer."""
    prune, optim, total = manifest.prune, manifest.optim, steps_total(manifest)
    if optim is not None and type(optim).kind == "adamwprune" and (prune is None or prune.kind != "state"):
        message = f"'adamwprune' prunes: expected [prune] kind = 'state', or optim.kind = {optim.base!r}"
        yield ("optim", "kind"), message
    if prune is None:
        return
    if prune.kind == "state" and optim is not None and not type(optim).moments:
        message = f"'state' reads Adam's moments, and {type(optim).kind!r} has none of the matrices"
        yield ("prune", "kind"), message
    for key, span in (("start", prune.start), ("end", prune.end)):
        if span.steps is not None and total is None:
            message = "the budget is in seconds, so its number of steps is unknown; expected { fraction = ... }"
            yield ("prune", key, "steps"), message
            return
    start, end = (span.steps if span.steps is not None else (span.fraction or 0.0) * (total or 1.0)
                  for span in (prune.start, prune.end))  # fmt: skip
    if end <= start:
        yield ("prune", "end"), f"must come after start: {end:g} after {start:g}"
    elif total is not None and end > total:
        yield ("prune", "end"), f"the target would be reached at step {end:g}, but the budget has {total} steps"


def _activation_faults(manifest: Manifest) -> Iterator[tuple[Key, str]]:
    """Yields faults of activations that end after the budget, and of an activation without a patch to switch on."""
    total = steps_total(manifest)
    own = {name: patch.activation for name, patch in manifest.patch.items() if patch.activation is not None}
    if manifest.activation.kind != "at_once" and len(own) == len(manifest.patch):
        yield ("activation", "kind"), "there is no patch to switch on; remove [activation], or add a patch"
    sections = [(("activation",), manifest.activation), *((("patch", n, "activation"), s) for n, s in own.items())]
    for at, section in sections:
        for key, what, end in _ends(section, total):
            if total is not None and end >= total + (what == "fully open"):
                yield (*at, key), f"it would be {what} at step {end:.0f}, but the budget has {total} steps"


def _ends(section: ActivationSection, total: int | None) -> Iterator[tuple[str, str, float]]:
    """Yields (key, event, step) of the last events of an activation."""
    after, over, deadline = (
        span.steps if span.steps is not None else (span.fraction or 0.0) * (total or 0)
        for span in (section.after, section.over, section.deadline)
    )
    if section.kind in ("after", "ramp"):
        yield "after", "open", after
    if section.kind == "ramp":
        yield "over", "fully open", after + over
    if section.kind == "variance":
        yield "deadline", "open", deadline
        yield "over", "fully open", deadline + over


def _in_file_order(faults: Sequence[Fault], source: Source) -> list[Fault]:
    ranks = {label: rank for rank, label in enumerate(reversed(source.labels), start=1)}

    def place(fault: Fault) -> tuple[int, int]:
        label, _, line = fault.where.rpartition(":")
        return (ranks.get(label, 0), int(line)) if label in ranks else (ranks.get(fault.where, 0), 0)

    return sorted(faults, key=place)
