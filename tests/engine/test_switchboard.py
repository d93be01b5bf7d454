"""Activations move while a run trains: exactly, resumably, without a recompile."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from ratrain.engine.engine import Engine
from ratrain.engine.step import TrainStep
from ratrain.errors import ManifestError, PreemptedError
from ratrain.events import Activated, Compiled, Window
from ratrain.model.build import switches

KEYS = ("train.budget.steps=12", "log.every=5", "eval.windows=2", "eval.every=4")
AFTER = ("activation.kind=after", "activation.after={ steps = 6 }")
VARIANCE = (
    *("activation.kind=variance", "activation.window=3", "activation.every=4", "activation.threshold=1e-9"),
    "activation.deadline={ fraction = 0.6 }",
)


@pytest.fixture
def trains(tiny, tmp_path):
    """An engine that has trained v1 with overrides, and what it stated."""

    def trains(*overrides, stop=None, name="v1"):
        heard = []

        def emit(event):
            heard.append(event)
            if isinstance(event, Window) and event.step == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        manifest = tiny(name, *KEYS, *overrides)
        engine = Engine(manifest, checkpoints=tmp_path / "c", device=torch.device("cpu"), emit=emit)
        if stop is None:
            engine.run()
        else:
            with pytest.raises(PreemptedError):
                engine.run()
        return engine, heard

    return trains


def activations(heard):
    return [(event.step, event.patch, event.s) for event in heard if isinstance(event, Activated)]


def losses(heard):
    return [loss for event in heard if isinstance(event, Window) for loss in event.losses]


def test_closed_it_trains_the_base_model_and_then_it_does_not(trains, tiny, tmp_path):
    _, heard = trains(*AFTER)
    base = []
    Engine(tiny("v0", *KEYS), checkpoints=tmp_path / "b", device=torch.device("cpu"), emit=base.append).run()
    assert losses(heard)[:6] == losses(base)[:6]
    assert losses(heard)[6] != losses(base)[6]
    assert activations(heard) == [(6, "unified_ra", 1.0)]


def test_each_step_finds_the_s_of_its_number(trains, monkeypatch):
    seen, real = [], TrainStep.__call__

    def stepping(self, *batch):
        seen.append({float(s) for s in switches(self.model)["unified_ra"]})
        return real(self, *batch)

    monkeypatch.setattr(TrainStep, "__call__", stepping)
    trains("activation.kind=ramp", "activation.after={ steps = 3 }", "activation.over={ steps = 4 }")
    assert seen == [{s} for s in (0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1)]


@pytest.mark.parametrize("keys", [AFTER, VARIANCE], ids=["after", "variance"])
@pytest.mark.parametrize("stop", [4, 5, 8])
def test_a_run_resumes_exactly_across_the_flip(trains, tmp_path, keys, stop):
    whole, heard = trains(*keys)
    (tmp_path / "c").rename(tmp_path / "whole")
    _, first = trains(*keys, stop=stop)
    resumed, second = trains(*keys)
    assert losses(first) + losses(second) == losses(heard)
    assert activations(first) + activations(second) == activations(heard) != []
    own = resumed.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in whole.model.state_dict().items())


@pytest.mark.parametrize("cadence", [("log.every=1",), ("log.every=7", "eval.every=0"), ("checkpoint.every=5",)])
def test_how_often_is_logged_does_not_decide_when_it_opens(trains, tmp_path, cadence):
    _, heard = trains(*VARIANCE)
    (tmp_path / "c").rename(tmp_path / "first")
    _, other = trains(*VARIANCE, *cadence)
    assert activations(other) == activations(heard) == [(8, "unified_ra", 1.0)]
    assert losses(other) == losses(heard)


@pytest.mark.parametrize("keys", [AFTER, VARIANCE], ids=["after", "variance"])
def test_nothing_recompiles(trains, keys):
    torch._dynamo.reset()
    _, heard = trains(*keys, "compile.scope=block", "compile.backend=aot_eager")
    compiled = [event for event in heard if isinstance(event, Compiled)]
    windows = [event for event in heard if isinstance(event, Window)]
    assert windows[-1].graphs == sum(event.expected for event in compiled)
    assert windows[-1].recompiles == 0


def test_a_patch_may_have_a_schedule_of_its_own(trains):
    own = "patch.unified_ra.activation={ kind = 'after', after = { steps = 2 } }"
    assert activations(trains(own)[1]) == [(2, "unified_ra", 1.0)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("activation.kind=after",), "activation: kind = 'after' needs after"),
        (("activation.kind=ramp",), "activation: kind = 'ramp' needs over"),
        (("activation.kind=after", "activation.after.steps=3", "activation.window=5"), "does not read window"),
        (("activation.window=5",), "kind = 'at_once' does not read window"),
        (
            ("activation.kind=after", "activation.after.steps=12"),
            "activation.after: it would be open at step 12, but the budget has 12 steps",
        ),
        (
            ("activation.kind=ramp", "activation.after.steps=8", "activation.over.fraction=0.5"),
            "activation.over: it would be fully open at step 14, but the budget has 12 steps",
        ),
        (
            ("patch.unified_ra.activation={ kind = 'after', after = { steps = 99 } }",),
            "patch.unified_ra.activation.after: it would be open at step 99",
        ),
    ],
)
def test_what_cannot_be_is_told_with_its_place(tiny, keys, message):
    with pytest.raises(ManifestError) as error:
        tiny("v1", "train.budget.steps=12", *keys)
    assert message in str(error.value)


def test_an_activation_without_a_patch_is_refused(tiny):
    with pytest.raises(ManifestError, match=r"activation\.kind: there is no patch to switch on"):
        tiny("v0", *KEYS, *AFTER)


def test_a_new_kind_drops_the_keys_of_the_one_that_it_extends(tiny):
    manifest = tiny("v12", "train.budget.steps=100", "activation.kind=ramp", "activation.over={ fraction = 0.5 }")
    assert manifest.activation.model_dump(exclude_none=True) == {
        "kind": "ramp", "after": {"steps": 0}, "over": {"fraction": 0.5},
    }  # fmt: skip
