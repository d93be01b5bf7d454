"""A part needs a class and a line in the list of parts: here a recorder of loss spikes, over a stop and a resume."""

from __future__ import annotations

import pytest
import torch

from ratrain.engine.engine import Engine
from ratrain.engine.parts.all_parts import parts_of
from ratrain.engine.parts.part import Part, Position, Readings
from ratrain.errors import PreemptedError
from ratrain.events import Notice

KEYS = ("train.budget={steps=12}", "log.every=3", "eval.every=6", "checkpoint.every=6", "eval.windows=2")


class LossSpikes(Part):
    """Records the steps whose loss is above that of the step before by more than `rise` nats."""

    key = "loss_spikes"

    def __init__(self, rise: float):
        self.rise, self.last, self.steps, self.calls = rise, None, [], []

    def begin(self):
        self.calls.append("begin")
        return ()

    def before_step(self, after: Position) -> None:
        self.calls.append(("before", after.step))

    def after_step(self, step: int) -> None:
        self.calls.append(("after", step))

    def to_read(self):
        return {"two": torch.full((2,), 2.0)}

    def after_window(self, now: Position, window: Readings):
        assert window.values == {"two": [2.0, 2.0]}
        for step, loss in enumerate(window.losses, start=now.step - len(window.losses) + 1):
            if self.last is not None and loss > self.last + self.rise:
                self.steps.append(step)
                yield Notice(f"the loss rose to {loss:.4f} at step {step}", "warning")
            self.last = loss

    def finish(self, now: Position):
        yield Notice(f"{len(self.steps)} spikes")

    def state(self):
        return {"last": self.last, "steps": self.steps}

    def restore(self, state, tensors) -> None:
        self.last, self.steps = state["last"], list(state["steps"])


@pytest.fixture
def trained(tiny, tmp_path, monkeypatch):
    """Runs with the recorder; returns it and the events of this session."""
    monkeypatch.setattr("ratrain.engine.engine._SAMPLE_TOKENS", 2)

    def trained(folder, *, until=None):
        spikes, seen = LossSpikes(rise=0.0), []
        monkeypatch.setattr("ratrain.engine.engine.parts_of", lambda setup: [*parts_of(setup), spikes])
        place = {"checkpoints": tmp_path / folder, "device": torch.device("cpu"), "emit": seen.append}
        engine = Engine(tiny("v1", *KEYS), **place)
        try:
            engine.run(until=until)
        except PreemptedError:
            assert until
        return spikes, seen

    yield trained
    torch.use_deterministic_algorithms(False)


def test_every_hook_is_called_in_its_place(trained):
    spikes, seen = trained("whole")
    steps = [call for step in range(1, 13) for call in (("before", step), ("after", step))]
    assert spikes.calls == ["begin", *steps]
    assert [e.message for e in seen if isinstance(e, Notice)][-1] == f"{len(spikes.steps)} spikes"
    assert spikes.steps  # losses of different batches rise now and then


def test_its_state_survives_a_stop(trained):
    whole, _ = trained("whole")
    trained("parts", until=6)
    again, _ = trained("parts")
    assert again.steps == whole.steps
    assert again.calls[0] == ("before", 7)  # a resumed run does not begin again
