"""A rehearsal does everything once and leaves nothing."""

from __future__ import annotations

import json

import pytest
import torch

from ratrain.config.identity import recipe_hash
from ratrain.errors import DiskError, MissingError, UnavailableError
from ratrain.events import RunStarted
from ratrain.model.build import build
from ratrain.run.dry_run import dry_run, rehearse
from ratrain.storage import checkpoint


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_foretells_the_whole_run(tiny):
    manifest = tiny("v1", "train.budget.steps=1000")
    seen = rehearse(manifest, device="cpu", emit=lambda event: None)
    parameters = sum(p.numel() for p in build(manifest, device="meta").parameters())
    assert seen["parameters"] == parameters
    assert (seen["steps"], seen["tokens"]) == (1000, 1000 * 4 * 32)
    assert seen["train_seconds"] == pytest.approx(seen["tokens"] / seen["tokens_per_second"])
    assert seen["state_bytes"] == 16 * parameters
    assert seen["disk_bytes"] >= 3 * 3 * 4 * parameters  # two kept and one in the making, of weights and two moments
    assert len(seen["losses"]) == 2
    assert seen["recompiles"] == 0


def test_the_recipe_it_prints_is_that_of_the_run(tiny):
    manifest, seen = tiny("v1"), []
    dry_run(manifest, device="cpu", as_json=False, emit=seen.append)
    (started,) = (event for event in seen if isinstance(event, RunStarted))
    assert started.recipe_hash == recipe_hash(manifest)


@pytest.mark.parametrize(("kind", "each"), [("sgd", 12), ("adamw", 16), ("adamwadv", 20)])
def test_memory_is_that_of_the_optimizer(tiny, kind, each):
    seen = rehearse(tiny("gpt2", f"optim.kind={kind}"), device="cpu", emit=lambda event: None)
    assert seen["state_bytes"] == each * seen["parameters"]


def test_a_disk_without_room_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 1_000_000)
    with pytest.raises(DiskError, match="make room, or choose another --out"):
        rehearse(tiny("v1"), device="cpu", emit=lambda event: None)


def test_it_compiles_what_the_run_compiles(tiny):
    assert rehearse(tiny("v1", "compile.scope=block"), device="cpu", emit=lambda event: None)["graphs"] == 4


def test_it_leaves_nothing_behind(tiny, empty_folder):
    dry_run(tiny("v1"), device="cpu", as_json=False, emit=lambda event: None)
    assert not list(empty_folder.iterdir())


def test_a_warm_up_longer_than_the_rehearsal_is_no_fault(tiny):
    seen = rehearse(
        tiny("gpt2", "train.budget.steps=1000", "schedule.warmup={steps=700}"), device="cpu", emit=lambda event: None
    )
    assert seen["steps"] == 1000


def test_a_budget_in_seconds_is_told_as_such(tiny):
    text = dry_run(tiny("gpt2", "train.budget.seconds=90.0"), device="cpu", as_json=False, emit=lambda event: None)
    assert "90 s of training, the budget" in text


def test_it_is_told_in_words_and_in_json(tiny):
    text = dry_run(tiny("v1"), device="cpu", as_json=False, emit=lambda event: None)
    assert text.startswith("v1: built")
    assert text.endswith("nothing was written")
    assert json.loads(dry_run(tiny("v1"), device="cpu", as_json=True, emit=lambda event: None))["steps"] == 100


def test_it_fails_as_the_run_would(tiny):
    with pytest.raises(MissingError):
        rehearse(tiny("v1", "data.source=nowhere"), device="cpu", emit=lambda event: None)


def test_the_global_generator_is_where_any_run_begins(tiny):
    # a rehearsal is a run: it seeds for itself, so its losses do not depend on what was drawn before
    torch.manual_seed(1)
    first = rehearse(tiny("v1", "model.dropout=0.5"), device="cpu", emit=lambda event: None)["losses"]
    torch.manual_seed(2)
    assert rehearse(tiny("v1", "model.dropout=0.5"), device="cpu", emit=lambda event: None)["losses"] == first


def test_a_machine_without_a_compiler_is_told_in_one_message(tiny, monkeypatch):
    def compile_nothing(*args):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr("ratrain.engine.engine.compile_model", compile_nothing)
    with pytest.raises(UnavailableError, match=r"torch.compile needs a C\+\+ compiler"):
        dry_run(tiny("gpt2"), device="cpu", as_json=False, emit=lambda event: None)
