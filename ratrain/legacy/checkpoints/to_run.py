"""Converts a checkpoint of the reference to a run of ratrain: weights, moments if possible, and a check of the logits.

The converted model's logits are compared with logits computed from the old tensors directly; if they differ, the file
is refused. The run can be sampled, evaluated and exported, and others can branch from it (`--branch`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ratrain.config.identity import run_folder, run_hash
from ratrain.config.read import Source, read_source
from ratrain.config.render import render
from ratrain.config.resolve import resolve
from ratrain.config.schema import Manifest
from ratrain.engine.state import kept_by
from ratrain.errors import CannotCreateError, DataError, ManifestError
from ratrain.legacy.checkpoints.described import Described, described
from ratrain.legacy.checkpoints.forward import old_logits
from ratrain.legacy.checkpoints.read import OldCheckpoint, generation, read_checkpoint
from ratrain.legacy.checkpoints.tensors import Move, tensor_moves
from ratrain.model.build import build
from ratrain.model.gpt2 import GPT2
from ratrain.registry import optim_kinds, patch_kinds
from ratrain.storage.checkpoint import Checkpoint, save
from ratrain.storage.folder import RunFolder

_TOKENS = 48  # tokens in each of two sequences whose logits are compared
_AGREE = 1e-6  # relative to the largest logit, at least 1
# tensors of the reference without a counterpart here, because no code read them
_DROPPED = (".coupling_scale", ".route_bias_add", ".attn.ra_alpha", ".attn.q_proj.weight")


@dataclass(frozen=True)
class Converted:
    """The result of a conversion: folder, generation and step, largest difference of logits, and notes on losses."""

    folder: Path
    generation: str
    step: int
    difference: float
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Returns the result as lines of text, with the next commands."""
        made = f"generation {self.generation}, {self.step:,} iterations"
        return [
            f"{self.folder}: {made}; logits agree to {self.difference:.1g}",
            *self.notes,
            f"ratrain sample {self.folder} draws text",
            f"ratrain {self.folder}/resolved.toml --branch {self.folder} goes on",
        ]


def convert(path: Path, folder: Path | None = None, *, root: Path = Path("runs")) -> Converted:
    """Converts the checkpoint at `path` to a run in `folder`, or in its manifest's run folder below `root`.

    Raises MissingError, DataError if the file cannot be read or the logits differ, and CannotCreateError.
    """
    with _well_formed(path):
        old = read_checkpoint(path)
        made = generation(old)
        about = described(old, made)
    with tempfile.TemporaryDirectory() as aside:
        manifest, _ = _resolved(Path(aside) / "manifest.toml", about, path)
    run = RunFolder(folder if folder is not None else root / run_folder(manifest))
    if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
        raise CannotCreateError(f"{run.path}: is there already; move it aside, or choose another -o")
    model = build(manifest)
    with _well_formed(path):
        plan = _plan(old, about, model)
        _fill(model, plan, old)
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        difference = _compared(model, old, about)
        moments, notes = _moments(old, plan, model, manifest)
    with run.open():
        save(run.checkpoints, Checkpoint(old.step, tensors, moments, _state(manifest)), keep=2)
        manifest, source = _resolved(run.path / "manifest.toml", about, path)
        run.write("resolved.toml", render(manifest, source))
        run.write_state(status="done", step=old.step, loss=old.loss)
    return Converted(run.path, made, old.step, difference, notes)


@contextmanager
def _well_formed(path: Path) -> Iterator[None]:
    """Converts errors of the block to DataErrors of the file, whose content is arbitrary."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{path}: is not what the reference saved: {what}") from error


def _resolved(file: Path, about: Described, path: Path) -> tuple[Manifest, Source]:
    file.write_text(about.toml())
    source = read_source(file)
    try:
        return resolve(source, patches=patch_kinds(), optimizers=optim_kinds()), source
    except ManifestError as error:
        faults = "; ".join(f"{fault.key}: {fault.message}" for fault in error.faults)
        raise DataError(f"{path}: its arguments make no model here: {faults}") from error


def _plan(old: OldCheckpoint, about: Described, model: GPT2) -> dict[str, Move]:
    """Returns the move for each tensor of the model. Raises DataError if a tensor of the checkpoint is not used."""
    plan = tensor_moves(old.weights, about.n_layer, rows=model.spec.padded_vocab, route=about.route)
    plan = {name: move for name, move in plan.items() if name in model.state_dict()}
    used = {source for move in plan.values() for source in move.sources}
    left = [name for name in old.weights if name not in used and not name.endswith(_DROPPED)]
    if left:
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise DataError(f"{old.path}: {left[0]}{more} has no place in a model here")
    return plan


@torch.no_grad()
def _fill(model: GPT2, plan: Mapping[str, Move], old: OldCheckpoint) -> None:
    """Copies the old tensors into the model; biases that the old layers lack become 0.

    Raises DataError if a tensor is missing or of another shape.
    """
    for name, parameter in model.named_parameters():
        if name not in plan:
            if not name.endswith(".bias"):
                raise DataError(f"{old.path}: lacks what {name} is made of")
            parameter.zero_()
    for name, place in model.state_dict().items():
        if name in plan:
            move = plan[name]
            tensor = move.pick([old.weights[source] for source in move.sources])
            tensor = tensor if move.adjust is None else move.adjust(tensor)
            if tensor.shape != place.shape:
                shapes = f"{tuple(tensor.shape)}, in this model {tuple(place.shape)}"
                raise DataError(f"{old.path}: {', '.join(move.sources)}: makes {shapes}")
            place.copy_(tensor)


@torch.no_grad()
def _compared(model: GPT2, old: OldCheckpoint, about: Described) -> float:
    """Returns the largest difference of logits, in float64; converts `model` to float64.

    Raises DataError if the difference is larger than rounding.
    """
    spec, draw = model.spec, torch.Generator().manual_seed(0)
    tokens = torch.randint(spec.vocab_size, (2, min(_TOKENS, spec.block_size)), generator=draw)
    options = {"n_head": about.n_head, "route": about.route, "rank": about.rank}
    theirs = old_logits(old.weights, old.config, tokens, **options)[..., : spec.vocab_size]
    ours = model.double().eval().logits(tokens)
    difference = float((ours - theirs).abs().max())
    if not difference <= _AGREE * max(1.0, float(theirs.abs().max())):
        raise DataError(
            f"{old.path}: the converted model does not compute what the checkpoint does: logits differ by up to"
            f" {difference:.3g}; nothing was written"
        )
    return difference


def _moments(
    old: OldCheckpoint, plan: Mapping[str, Move], model: GPT2, manifest: Manifest
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Returns the optimizer's tensors by `parameter|key`, and notes on the ones not taken from the checkpoint."""
    keys = kept_by(manifest.optim)
    by_name, reason = _numbered(old)
    moments: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        move = plan.get(name)
        states = [by_name.get(source, {}) for source in move.sources] if move and move.keeps_moments else []
        if not any(states) or move is None:  # without a gradient, or new here: moments start at zero
            states = []
        for key in keys:
            moments[f"{name}|{key}"] = _moment(key, states, move, old, parameter)
    if not moments:  # the optimizer has no state, but a checkpoint without optimizer tensors counts as weights only
        moments["rng|0|cpu"] = torch.Generator().manual_seed(0).get_state()
    if reason:
        return moments, (f"{reason}: training goes on from its weights alone",)
    anew = [name for name, move in plan.items() if not move.keeps_moments]
    return moments, (f"the moments of {', '.join(anew)} begin anew: it is another number here",) if anew else ()


def _moment(
    key: str, states: list[Mapping[str, Tensor]], move: Move | None, old: OldCheckpoint, parameter: Tensor
) -> Tensor:
    if key == "step":
        return torch.tensor(max((float(state["step"]) for state in states if "step" in state), default=0.0))
    if not states or move is None:
        return torch.zeros(parameter.shape)
    whole = [
        state[key].float() if key in state else torch.zeros_like(old.weights[source])
        for source, state in zip(move.sources, states, strict=True)
    ]
    return move.pick(whole).clone()


def _numbered(old: OldCheckpoint) -> tuple[dict[str, Mapping[str, Tensor]], str]:
    """Returns the optimizer's state by the reference's parameter names, and a reason if there is none."""
    state, groups = old.optimizer.get("state"), old.optimizer.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(groups, list):
        return {}, "the checkpoint holds no optimizer"
    if old.was_wrapped or len(groups) != 1:
        return {}, "its optimizer numbers parameters as DDP did, twice some"
    names = old.parameters
    if len(groups[0].get("params", ())) != len(names):
        return {}, f"its optimizer has {len(groups[0].get('params', ()))} parameters, the model {len(names)}"
    found: dict[str, Mapping[str, Tensor]] = {}
    for index, entry in state.items():
        tensors = {key: torch.as_tensor(value) for key, value in entry.items()}
        name = names[int(index)]
        if any(t.shape != old.weights[name].shape for key, t in tensors.items() if key != "step"):
            return {}, f"its optimizer has moments for {name} of another shape"
        found[name] = tensors
    return found, ""


def _state(manifest: Manifest) -> dict[str, Any]:
    """Returns the plain state of the new checkpoint; without data, so that it can be branched from but not resumed."""
    return {
        "run_hash": run_hash(manifest),
        "optim": type(manifest.optim).kind,
        "data": "",
        "machine": {},
        "attention": None,
        "optimizer": {},
        "activation": {},
        "fitting": {},
        "pruning": {},
        "rng": [],
        "spent_seconds": 0.0,
        "skips_in_a_row": 0,
        "last_loss": None,
        "evaluated_at": -1,
    }
