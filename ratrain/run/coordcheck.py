"""The coordinate check: do activations and their changes stay of one size as a model grows?

A model is trained a few steps at several widths, or depths. Where initial values, learning rates and multipliers follow
the size rightly, the root mean square of the coordinates of every part stays the same, and so does that of their change
since initialisation; a wrong power of the width, at least its root, is a factor of 4 over 16 x the width.
Source: Yang et al. 2022, "Tensor Programs V", arXiv:2203.03466, appendix D.1.

Chosen by measurement, so that corrections of finite size do not hide a trend (docs/parametrisation.md has figures):
eight symbols in four rows of eight tokens, since the overlap of unlike tokens falls only as the root of the width; a
third of the peak learning rate for three steps, so that a model is not yet in a regime of its own; a fit of trends in
which a residual counts by its size, since those corrections fall as one over the size. A change is judged relative to
the initial size of its part: an option that names a number of channels is another share of them at every width, which
shows in both. Of some parts the change is judged as it is, and the initial size is not: with a tied head under muP the
initial logits fall as the root of the width, and under CompleteP the initial branches as the root of the depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ratrain.config.schema import InitSection, Manifest
from ratrain.engine.assembly import assemble
from ratrain.errors import ManifestError
from ratrain.model.build import build
from ratrain.model.gpt2 import GPT2

Axis = Literal["width", "depth"]
WIDTHS, DEPTHS = (64, 128, 256, 512, 1024), (2, 4, 8, 16)
STEPS, SEEDS = 3, 4
FLAT = {"width": 0.1, "depth": 0.25}  # largest trend that counts as flat; 16 layers are still a shallow limit
FALLING = {"width": ("logits",), "depth": ("stream", "final", "logits")}  # parts whose initial size is not judged
PARTS = ("scores", "values", "core", "attention", "hidden", "mlp", "stream", "final", "logits")
_SYMBOLS, _ROWS, _LENGTH, _LR = 8, 4, 8, 1 / 3
_NOTHING = 1e-30

# root mean square of a part and of its change since initialisation, by part and layer (0 for parts of the whole)
Sizes = dict[tuple[str, int], tuple[float, float]]


@dataclass(frozen=True)
class Run:
    """One model: its size and seed, the loss before each step, and coordinates at initialisation and after each."""

    size: int
    seed: int
    losses: list[float]
    readings: list[Sizes]


@dataclass(frozen=True)
class Part:
    """One part at every size, as geometric means over layers and seeds: at initialisation, and its change at the end.

    Trends are factors from the smallest to the largest size, by weighted least squares of logarithms: of the initial
    size, and of the change over the initial size (of FALLING parts: of the change itself). Along the depth the stream
    is that after the last layer.
    """

    name: str
    axis: Axis
    initial: tuple[float, ...]
    change: tuple[float, ...]
    initial_trend: float
    change_trend: float

    @property
    def judged(self) -> tuple[float, ...]:
        """The trends that the verdict rests on."""
        return (self.change_trend,) if self.falls else (self.initial_trend, self.change_trend)

    @property
    def falls(self) -> bool:
        return self.name in FALLING[self.axis]

    @property
    def flat(self) -> bool:
        return all(map(self.is_flat, self.judged))

    def is_flat(self, trend: float) -> bool:
        """Whether a factor over the sizes is 1 within FLAT."""
        return abs(math.log(trend)) <= math.log(1 + FLAT[self.axis])


@dataclass(frozen=True)
class Coordinates:
    """The outcome of a check: `parts` in the order of a forward pass."""

    id: str
    parametrisation: str
    axis: Axis
    sizes: tuple[int, ...]
    steps: int
    seeds: int
    lr: float
    parts: tuple[Part, ...]
    runs: tuple[Run, ...]

    @property
    def flat(self) -> bool:
        return all(part.flat for part in self.parts)

    @property
    def claimed(self) -> bool:
        """Whether the parametrisation claims to be flat along the axis: muP only along the width."""
        return self.parametrisation == "completep" or (self.parametrisation == "mup" and self.axis == "width")

    def record(self) -> dict[str, Any]:
        """Returns the figures as plain values, with every layer, seed and step."""
        told = ("id", "parametrisation", "axis", "sizes", "steps", "seeds", "lr")
        about = {name: getattr(self, name) for name in told}
        parts = [{**vars(part), "flat": part.flat} for part in self.parts]
        return {**about, "flat": self.flat, "parts": parts, "runs": [_record(run) for run in self.runs]}


def check_coordinates(
    manifest: Manifest,
    *,
    axis: Axis = "width",
    sizes: Sequence[int] = WIDTHS,
    steps: int = STEPS,
    seeds: int = SEEDS,
    say: Callable[[str], None] = lambda text: None,
) -> Coordinates:
    """Trains the manifest at every size and seed, on the CPU, eagerly and in fp32; heads keep their width.

    Raises the errors of `build`, also where options of a patch do not fit a size.
    """
    runs = []
    for size in sizes:
        sized = resized(manifest, axis, size)
        for seed in range(1, seeds + 1):
            runs.append(_run(sized, size, seed, steps))
        say(f"{axis} {size}: loss {runs[-1].losses[0]:.3f} to {runs[-1].losses[-1]:.3f}")
    found = {key for run in runs for key in run.readings[0]}
    parts = tuple(_part(name, axis, runs, sizes) for name in PARTS if any(key[0] == name for key in found))
    about = manifest.id, manifest.model.parametrisation, axis, tuple(sizes), steps, seeds
    return Coordinates(*about, lr=manifest.schedule.lr * _LR, parts=parts, runs=tuple(runs))


def resized(manifest: Manifest, axis: Axis, size: int) -> Manifest:
    """Returns the manifest with another width or depth, for short rows of few symbols, and without pruning."""
    spec, train = manifest.model, manifest.train
    shape = {"n_embd": size, "n_head": size // spec.head_dim} if axis == "width" else {"n_layer": size}
    spec = spec.model_copy(update={**shape, "vocab_size": _SYMBOLS, "dropout": 0.0})
    train = train.model_copy(update={"batch": _ROWS, "micro_batch": _ROWS, "precision": "fp32"})
    whole = manifest.model_copy(update={"model": spec, "train": train, "prune": None, "init": InitSection()})
    short = whole.model_copy(update={"model": spec.model_copy(update={"block_size": min(_LENGTH, spec.block_size)})})
    try:
        build(short, device="meta")
    except ManifestError:
        return whole  # options may be counts of tokens that do not fit the short context
    return short


def _run(manifest: Manifest, size: int, seed: int, steps: int) -> Run:
    seeds = manifest.seed.model_copy(update={"init": seed})
    made = assemble(manifest.model_copy(update={"seed": seeds}))
    made.step.set_lr(manifest.schedule.lr * _LR)
    shape = _ROWS, min(_LENGTH, manifest.model.block_size) + 1
    frequency = 1 / torch.arange(1, _SYMBOLS + 1, dtype=torch.float64)  # Zipf's law
    drawn = torch.multinomial(frequency, math.prod(shape), replacement=True, generator=torch.Generator().manual_seed(1))
    tokens = drawn.view(shape)
    first = coordinates(made.model, tokens[:, :-1])
    readings, losses = [_sizes(first, first)], []
    for _ in range(steps):
        losses.append(float(made.step(tokens[:, :-1], tokens[:, 1:]).loss))
        readings.append(_sizes(coordinates(made.model, tokens[:, :-1]), first))
    return Run(size, seed, losses, readings)


@torch.no_grad()
def coordinates(model: GPT2, tokens: Tensor) -> dict[tuple[str, int], Tensor]:
    """Returns the activations of every part by part and layer, in eval mode, for tokens [B, T].

    Scores are the base's, from the queries and keys that reach the core. Parts that a patch has removed are absent.
    """
    found: dict[tuple[str, int], Tensor] = {}
    handles = [
        module.register_forward_hook(_noting(found, name, layer, scale=model.spec.score_scale))
        for name, layer, module in _parts(model)
    ]
    training = model.training
    try:
        found["logits", 0] = model.eval().logits(tokens)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found


def _parts(model: GPT2) -> Iterator[tuple[str, int, nn.Module]]:
    places = {"core": "attn.core", "attention": "attn", "hidden": "mlp.down", "mlp": "mlp", "stream": ""}
    for layer, block in enumerate(model.blocks):
        modules = dict(block.named_modules())
        yield from ((name, layer, modules[place]) for name, place in places.items() if place in modules)
    yield "final", 0, model.norm


def _noting(
    found: dict[tuple[str, int], Tensor], name: str, layer: int, *, scale: float | None
) -> Callable[[nn.Module, Any, Any], None]:
    """Returns a hook that stores the module's output, or inputs, in `found`."""

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        y = output[0] if isinstance(output, tuple) else output
        found[name, layer] = (inputs[0] if name == "hidden" else y).detach().float()
        if name == "core":
            q, k, v = (t.detach().float() for t in inputs[:3])  # [B, H, T, D]
            scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
            found["scores", layer] = scores[..., torch.ones(scores.shape[-2:], dtype=torch.bool).tril()]
            found["values", layer] = v

    return note


def _sizes(now: dict[tuple[str, int], Tensor], first: dict[tuple[str, int], Tensor]) -> Sizes:
    return {key: (_rms(x), _rms(x - first[key])) for key, x in now.items()}


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _part(name: str, axis: Axis, runs: Sequence[Run], sizes: Sequence[int]) -> Part:
    """Summarises one part; layers count alike, whatever their size."""
    last = axis == "depth" and name == "stream"  # it grows from layer to layer, and layers are at other depths
    initial = [_log(run.readings[0], name, 0, last=last) for run in runs]
    change = [_log(run.readings[-1], name, 1, last=last) for run in runs]
    by_size = [[i for i, run in enumerate(runs) if run.size == size] for size in sizes]
    middle = [tuple(math.exp(np.mean([logs[i] for i in some])) for some in by_size) for logs in (initial, change)]
    relative = [late - early for late, early in zip(change, initial, strict=True)]
    judged = change if name in FALLING[axis] else relative
    at_first, of_change = (_trend([run.size for run in runs], logs) for logs in (initial, judged))
    return Part(name, axis, middle[0], middle[1], at_first, of_change)


def _log(reading: Sizes, name: str, at: int, *, last: bool) -> float:
    """Returns the mean logarithm over layers of a part's size (0) or change (1), or that of its last layer."""
    logs = [math.log(max(reading[key][at], _NOTHING)) for key in sorted(reading) if key[0] == name]
    return logs[-1] if last else float(np.mean(logs))


def _trend(sizes: Sequence[int], logs: Sequence[float]) -> float:
    """Returns the factor from the smallest to the largest size of a power law fitted to the logarithms."""
    if not all(map(math.isfinite, logs)):
        return math.inf
    slope = float(np.polyfit(np.log(sizes), logs, 1, w=sizes)[0])  # residuals are multiplied by w, then squared
    return math.exp(slope * math.log(max(sizes) / min(sizes)))


def _record(run: Run) -> dict[str, Any]:
    steps = [
        [{"part": part, "layer": layer, "rms": rms, "change": change} for (part, layer), (rms, change) in one.items()]
        for one in run.readings
    ]
    return {"size": run.size, "seed": run.seed, "losses": run.losses, "steps": steps}


def table(found: Coordinates) -> list[tuple[str, ...]]:
    """Returns the rows of the table: initial sizes of each part, and its change at the end relative to them."""
    over = f"over {max(found.sizes) / min(found.sizes):g} x"
    rows = [("part", "", *(f"{size:,}" for size in found.sizes), over, "")]
    for part in found.parts:
        over_initial = [change / max(first, _NOTHING) for change, first in zip(part.change, part.initial, strict=True)]
        moved = ("change", part.change) if part.falls else ("change / initial", over_initial)
        for (label, values), trend in ((("initial", part.initial), part.initial_trend), (moved, part.change_trend)):
            word = "" if part.falls and label == "initial" else "flat" if part.is_flat(trend) else "NOT FLAT"
            rows.append((part.name, label, *(f"{value:.3g}" for value in values), f"x {trend:.3g}", word))
    return rows


def verdict(found: Coordinates) -> str:
    """Returns the line that ends the check."""
    off = [part.name for part in found.parts if not part.flat]
    told = f"{found.id}, {found.parametrisation}: "
    told += f"{', '.join(off)} {'are' if len(off) > 1 else 'is'} not flat" if off else "every part is flat"
    told += f" within {FLAT[found.axis]:.0%} over {max(found.sizes) / min(found.sizes):g} x the {found.axis}"
    if off and not found.claimed:
        cure = "completep" if found.axis == "depth" else "mup"
        told += f"; it does not claim to be: model.parametrisation = '{cure}' does"
    return told
