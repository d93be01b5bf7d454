"""Schedules the activation `s` of each patch: by the patch's own section, or by the manifest's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ratrain.config.schema import Manifest
from ratrain.engine.parts.part import Part, Position, Readings
from ratrain.events import Activated
from ratrain.model.build import switches
from ratrain.model.gpt2 import GPT2
from ratrain.recipe.activation import Activation


class Switchboard(Part):
    """Sets the buffers `s` and `anneal` of every patch by schedule, without a device read or a recompile."""

    key = "activation"

    def __init__(self, manifest: Manifest, model: GPT2, *, total_steps: int | None):
        self._buffers = {name: buffers for name, buffers in switches(model).items() if buffers}
        sections = {name: manifest.patch[name].activation or manifest.activation for name in self._buffers}
        for name, buffers in switches(model, "anneal").items():
            if buffers:  # annealed values of a patch, with a schedule of their own
                key = f"{name}.anneal"
                self._buffers[key], sections[key] = buffers, manifest.patch[name].anneals
        self._activations = {key: Activation(section, total_steps=total_steps) for key, section in sections.items()}
        self._now: dict[str, float] = {}  # the values last written to the buffers

    def set(self, step: int, spent: float) -> Iterator[tuple[str, float]]:
        """Writes s for the step after `step` to the buffers; yields name and s of each patch that leaves 0."""
        for name, activation in self._activations.items():
            s, before = activation.s(step, spent), self._now.get(name)
            if s == before:
                continue
            for buffer in self._buffers[name]:
                buffer.fill_(s)
            self._now[name] = s
            if s and before == 0 and not name.endswith(".anneal"):
                yield name, s

    def move_to(self, now: Position) -> Iterator[Activated]:
        for name, s in self.set(now.step, now.spent):
            yield Activated(now.step, name, s)

    def is_open(self) -> dict[str, bool]:
        """Returns for each patch whether its s is above 0, so that it differs from the base model."""
        return {name: s > 0 for name, s in self._now.items()}

    def after_window(self, now: Position, window: Readings) -> tuple[()]:
        """Passes the losses to loss-driven schedules; losses and decisions are the same on every process."""
        for activation in self._activations.values():
            activation.look(window.losses, now.step, now.spent)
        return ()

    def stops(self, step: int) -> list[int]:
        looks = (activation.next_look(step) for activation in self._activations.values())
        return [look for look in looks if look is not None]

    def state(self) -> dict[str, Any]:
        return {name: activation.state_dict() for name, activation in self._activations.items()}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restores the schedules from `state`; a patch that is not in it starts afresh (a branch may add one)."""
        for name, activation in self._activations.items():
            if name in state:
                activation.load_state_dict(state[name])
