"""What patches offer to be looked at, per layer and head: gates, their gradients, what the reciprocal channels score.

A patch's module states `probes()`: tensors made of its parameters, one value or one per head, which are read with each
window. What depends on activations is observed in a pass of its own, with each evaluation: a module that names its part
of the scores (`reciprocal_scores`) or of the hidden channels (`reciprocal_hidden`) has that part's variance measured;
one may also look at the queries, keys and values of its layer by itself (`observed`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ratrain.engine.evaluate import Evaluator
from ratrain.engine.observe import looked_at
from ratrain.engine.parts.part import Part, Position, Readings
from ratrain.engine.step import Precision, TrainStep
from ratrain.events import Probed
from ratrain.model.gpt2 import GPT2

Values = dict[str, dict[str, list[list[float]]]]  # by patch and probe: a row per layer, with a value per head or one
_Key = tuple[str, str, int]  # patch, probe, layer
_ROWS = 2  # sequences of an observation


class Probes(Part):
    """Reads the probes of a built model; `on` False finds nothing to read.

    With each evaluation the process that has an `evaluator` also observes activations.
    """

    def __init__(self, model: GPT2, step: TrainStep, *, on: bool, evaluator: Evaluator | None = None):
        self.model, self.step, self._evaluator = model, step, evaluator
        self._observed: Values = {}
        self._n_layer = len(model.blocks)
        self._sites = list(_sites(model)) if on else []
        gates: dict[_Key, str] = {}
        for patch, layer, site, module in self._sites:
            for name, parameter in module.named_parameters():
                kept = f"{site}.{name}".rpartition(".")[0] in model.base_names  # a module of the base
                if parameter.dim() == 1 and not kept:
                    gates[_key(gates, patch, name, layer, site)] = f"{site}.{name}"
        self._gates = {key: step.precision.masters[name] for key, name in gates.items()}
        step.watched = list(self._gates.values())

    def to_read(self) -> dict[_Key, Tensor]:
        return self._found()

    def after_window(self, now: Position, window: Readings) -> Iterator[Probed]:
        if window.values:
            yield Probed(now.step, self._rows(window.values))

    def read(self) -> Values:
        """What every probe says now."""
        return self._rows({key: tensor.detach().float().flatten().tolist() for key, tensor in self._found().items()})

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        yield
        self._observed = {}
        if self._evaluator:
            self._observed = self.observe(self._evaluator.real_windows, self._evaluator.precision)

    def after_evaluation(self, now: Position, loss: float) -> Iterator[Probed]:
        if self._observed:
            yield Probed(now.step, self._observed)

    def observe(self, windows: Tensor, precision: Precision) -> Values:
        """Shares of variance in an uncompiled pass over the first of `windows` [n, T + 1]; empty if none is offered."""
        blocks = self.model.blocks
        found = (_watcher(patch, layer, blocks[layer], module) for patch, layer, _, module in self._sites)
        watchers = [watcher for watcher in found if watcher]
        if not watchers:
            return {}
        with looked_at(self.model, [(watcher.place, watcher) for watcher in watchers], precision):
            self.model.logits(windows[:_ROWS, :-1].to(self.model.wte.weight.device))
        return self._rows({(w.patch, name, w.layer): t.tolist() for w in watchers for name, t in w.seen.items()})

    def _found(self) -> dict[_Key, Tensor]:
        found: dict[_Key, Tensor] = {}
        for patch, layer, site, module in self._sites:
            for probe, tensor in getattr(module, "probes", dict)().items():
                found[_key(found, patch, probe, layer, site)] = tensor
        for (patch, name, layer), gradient in zip(self._gates, self.step.watched_gradients, strict=False):
            if gradient is not None:  # one value per head where there is one, else the norm
                per_head = gradient.numel() in (1, self.model.spec.n_head)
                found[patch, f"gradient of {name}", layer] = gradient.abs() if per_head else gradient.norm()
        return found

    def _rows(self, values: Mapping[_Key, list[float]]) -> Values:
        rows: Values = {}
        for (patch, probe, layer), numbers in values.items():
            layers = rows.setdefault(patch, {}).setdefault(probe, [[] for _ in range(self._n_layer)])
            layers[layer] = [float(f"{number:.6g}") for number in numbers]
        return rows


def _sites(model: GPT2) -> Iterator[tuple[str, int, str, nn.Module]]:
    """(patch, layer, site, module) of everything that a patch put into a block."""
    for site, patch in model.claimed.items():
        found = re.match(r"blocks\.(\d+)(\.|$)", site)
        if found:
            yield patch, int(found[1]), site, model.get_submodule(site)


def _key(taken: Mapping[_Key, Any], patch: str, name: str, layer: int, site: str) -> _Key:
    """The name alone, or behind the seam where the patch has one of that name at another seam of the layer."""
    key = patch, name, layer
    return key if key not in taken else (patch, f"{site.rpartition('.')[2]}.{name}", layer)


@dataclass
class _Watcher:
    """A hook that looks at what `place` is about to be given. Shares of variance can exceed 1: the parts may go
    together or against each other."""

    patch: str
    layer: int
    place: nn.Module
    look: Callable[[Any, tuple[Any, ...]], dict[str, Tensor]]
    seen: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, place: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.seen = self.look(place, inputs)


def _watcher(patch: str, layer: int, block: Any, module: Any) -> _Watcher | None:
    """What looks at the part that `module` names, if it names one."""
    if hasattr(module, "observed"):
        return _Watcher(patch, layer, block.attn.core, lambda core, inputs: module.observed(*inputs[:3]))
    if hasattr(module, "reciprocal_scores"):

        def of_scores(core: Any, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
            whole, part = module.reciprocal_scores(*inputs[:2])
            return {"share of score variance": _score_variance(*part) / _score_variance(*whole)}

        return _Watcher(patch, layer, block.attn.core, of_scores)
    if hasattr(module, "reciprocal_hidden"):

        def of_output(down: Any, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
            hidden, gate = inputs
            part = down.forward(module.reciprocal_hidden(hidden), gate)
            return {"share of MLP output variance": (_variance(part) / _variance(down.forward(hidden, gate)))[None]}

        return _Watcher(patch, layer, block.mlp.down, of_output)
    return None


def _score_variance(q: Tensor, k: Tensor) -> Tensor:
    """Variance [H] of q_i . k_j over j <= i, around each query's mean, which the softmax does not see."""
    scores = q.float() @ k.float().mT  # [B, H, T, T]
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    mean = (scores * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)
    return ((scores - mean) * seen).square().sum((0, 2, 3))


def _variance(y: Tensor) -> Tensor:
    """Over tokens, summed over channels: 0-d."""
    return y.float().flatten(0, 1).var(0).sum()
