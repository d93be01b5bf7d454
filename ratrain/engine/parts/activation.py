"""Moves the activations of a model: each patch by its own schedule, or by the manifest's."""

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
    """The buffers `s` and `anneal` of every patch, and what moves them. Nothing is read back, nothing recompiles."""

    key = "activation"

    def __init__(self, manifest: Manifest, model: GPT2, *, total_steps: int | None):
        self._buffers = {name: buffers for name, buffers in switches(model).items() if buffers}
        sections = {name: manifest.patch[name].activation or manifest.activation for name in self._buffers}
        for name, buffers in switches(model, "anneal").items():
            if buffers:  # what a patch moves by a schedule of its own
                key = f"{name}.anneal"
                self._buffers[key], sections[key] = buffers, manifest.patch[name].anneals
        self._activations = {key: Activation(section, total_steps=total_steps) for key, section in sections.items()}
        self._now: dict[str, float] = {}  # what the buffers hold, where this has set them

    def set(self, step: int, spent: float) -> Iterator[tuple[str, float]]:
        """Puts s for the step after `step` into the buffers; yields each patch that leaves 0 thereby, and its s."""
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
        """Which patches are not the base model now."""
        return {name: s > 0 for name, s in self._now.items()}

    def after_window(self, now: Position, window: Readings) -> tuple[()]:
        """Hands the losses to schedules that follow them; losses and decisions are the same on every process."""
        for activation in self._activations.values():
            activation.look(window.losses, now.step, now.spent)
        return ()

    def stops(self, step: int) -> list[int]:
        looks = (activation.next_look(step) for activation in self._activations.values())
        return [look for look in looks if look is not None]

    def state(self) -> dict[str, Any]:
        return {name: activation.state_dict() for name, activation in self._activations.items()}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Goes on from `state`; a patch that it does not know begins anew (a branch may add one)."""
        for name, activation in self._activations.items():
            if name in state:
                activation.load_state_dict(state[name])
