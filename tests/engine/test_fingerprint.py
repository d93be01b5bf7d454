"""Digests of what a run begins with: alike where runs share it, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from ratrain.engine.engine import Engine
from ratrain.engine.fingerprints import fingerprints
from ratrain.events import Evaluated, Fingerprints


@pytest.fixture
def told(tiny, tmp_path):
    def told(name="gpt2", *keys):
        engine = Engine(tiny(name, *keys), checkpoints=tmp_path, device=torch.device("cpu"), emit=lambda event: None)
        return fingerprints(engine.setup)

    return told


def test_a_patch_changes_none_of_them(told):
    base = told()
    for name in ("v6", "v19", "tied_ra", "value_residual"):
        other = told(name)
        assert other.weights == {key: value for key, value in base.weights.items() if key in other.weights}
        assert (other.data, other.order, other.windows, other.sizes) == (
            base.data, base.order, base.windows, base.sizes
        )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("seed.init=2", "weights"),
        ("seed.twin='ulp'", "weights"),
        ("seed.data=2", "order"),
        ("train.batch=8", "order"),
        ("eval.windows=4", "windows"),
    ],
)
def test_what_differs_shows_and_the_rest_does_not(told, key, changed):
    base, other = told(), told("gpt2", key)
    unlike = [name for name in ("data", "order", "windows", "weights") if getattr(base, name) != getattr(other, name)]
    assert unlike == [changed]
    if "ulp" in key:
        assert [name for name in base.weights if base.weights[name] != other.weights[name]] == ["wte.weight"]


def test_a_run_states_them_once_and_the_parts_of_its_loss_make_up_the_whole(tiny, tmp_path):
    manifest, seen = tiny("gpt2", "train.budget.steps=4", "eval.every=2"), []
    Engine(manifest, checkpoints=tmp_path, device=torch.device("cpu"), emit=seen.append).run()
    (stated,) = (event for event in seen if isinstance(event, Fingerprints))
    assert stated.unit == "passage"  # two plays: too few to be a sample of plays
    for event in (event for event in seen if isinstance(event, Evaluated)):
        weighted = sum(n * part for n, part in zip(stated.sizes, event.parts, strict=True)) / sum(stated.sizes)
        assert event.loss == pytest.approx(weighted, rel=1e-12)
        assert sum(stated.sizes) == event.tokens
