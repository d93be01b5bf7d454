"""Probes of patches, per layer and head: gates, their gradients, shares of variance.

`Mechanism.probes` returns tensors computed from parameters; they are read with each window.
`Mechanism.observe_attention` and `observe_mlp` compute values from activations, in a pass of their own at each
evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ratrain.engine.evaluate import Evaluator
from ratrain.engine.observe import looked_at
from ratrain.engine.parts.part import Part, Position, Readings
from ratrain.engine.step import Precision, TrainStep
from ratrain.events import Probed
from ratrain.model.gpt2 import GPT2
from ratrain.model.mechanism import offers

Values = dict[str, dict[str, list[list[float]]]]  # by patch and probe: a row per layer, with a value per head or one
_Key = tuple[str, str, int]  # patch, probe, layer
_ROWS = 2  # sequences of an observation


class Probes(Part):
    """Reads the probes of a built model; with `on` False it reads nothing.

    At each evaluation processes with an `evaluator` also observe activations: rank 0, or all that divide the model.
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
        """Returns the current values of every probe; reads the device."""
        return self._rows({key: tensor.detach().float().flatten().tolist() for key, tensor in self._found().items()})

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        yield
        self._observed = {}
        if self._evaluator:
            with self._evaluator.world.gathered():
                self._observed = self.observe(self._evaluator.windows.inputs, self._evaluator.precision)

    def after_evaluation(self, now: Position, loss: float) -> Iterator[Probed]:
        if self._observed:
            yield Probed(now.step, self._observed)

    def observe(self, inputs: Tensor, precision: Precision) -> Values:
        """Observes activations in an uncompiled pass over the first rows of `inputs` [n, T].

        Returns shares of variance, or an empty dict if no patch observes its layer.
        """
        blocks = self.model.blocks
        found = (_watcher(patch, layer, blocks[layer], module) for patch, layer, _, module in self._sites)
        watchers = [watcher for watcher in found if watcher]
        if not watchers:
            return {}
        with looked_at(self.model, [(watcher.place, watcher) for watcher in watchers], precision):
            self.model.logits(inputs[:_ROWS].to(self.model.wte.weight.device))
        return self._rows({(w.patch, name, w.layer): t.tolist() for w in watchers for name, t in w.seen.items()})

    def _found(self) -> dict[_Key, Tensor]:
        found: dict[_Key, Tensor] = {}
        for patch, layer, site, module in self._sites:
            for probe, tensor in getattr(module, "probes", dict)().items():
                found[_key(found, patch, probe, layer, site)] = tensor
        for (patch, name, layer), gradient in zip(self._gates, self.step.watched_gradients, strict=False):
            if gradient is not None:  # one value, or one per head; of any other size, the norm
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
    """Yields (patch, layer, site, module) of every module that a patch put into a block."""
    for site, patch in model.claimed.items():
        found = re.match(r"blocks\.(\d+)(\.|$)", site)
        if found:
            yield patch, int(found[1]), site, model.get_submodule(site)


def _key(taken: Mapping[_Key, Any], patch: str, name: str, layer: int, site: str) -> _Key:
    """Returns the key of a probe; the name gets the seam as prefix if the patch has that name at another seam."""
    key = patch, name, layer
    return key if key not in taken else (patch, f"{site.rpartition('.')[2]}.{name}", layer)


@dataclass
class _Watcher:
    """A forward pre-hook of `place` that stores the result of `look` on its inputs."""

    patch: str
    layer: int
    place: nn.Module
    look: Callable[[Any, tuple[Any, ...]], dict[str, Tensor]]
    seen: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, place: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.seen = self.look(place, inputs)


def _watcher(patch: str, layer: int, block: Any, module: Any) -> _Watcher | None:
    """Returns the hook for a module that observes its layer; None for others."""
    if offers(module, "observe_attention"):
        return _Watcher(patch, layer, block.attn.core, lambda core, inputs: module.observe_attention(*inputs[:3]))
    if offers(module, "observe_mlp"):
        return _Watcher(patch, layer, block.mlp.down, lambda down, inputs: module.observe_mlp(down, *inputs))
    return None
