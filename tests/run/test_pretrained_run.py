"""Runs that begin with pretrained weights: where they start, what is recorded, and going on without the file."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch

from ratrain.storage.checkpoint import listed, load

HF = runpy.run_path(str(Path(__file__).parents[1] / "model" / "hugging_face.py"))
CONFIG = {**HF["CONFIG"], "vocab_size": 2048, "n_positions": 32}
KEYS = ("compile.scope=off", "log.every=1", "eval.windows=2", "checkpoint.every=2", "model.act=gelu_tanh")
STEPS = ("train.budget.steps=4",)


@pytest.fixture
def weights(tmp_path):
    tensors = {name: 0.1 * t for name, t in HF["tensors_of"](CONFIG).items()}
    return HF["write"](tmp_path / "gpt2", tensors, CONFIG)


@pytest.fixture
def trains(ratrain, tmp_path):
    """Runs v1 with flags below tmp_path: (code, stdout, stderr)."""

    def trains(*flags, keys=STEPS, name="v1"):
        sets = [word for key in (*KEYS, *keys) for word in ("--set", key)]
        return ratrain(name, "--scale", "tiny", "--device", "cpu", "--out", tmp_path / "runs", "--json", *sets, *flags)

    return trains


def only(tmp_path):
    (found,) = (tmp_path / "runs").glob("*/s1")
    return found


def events(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_it_begins_with_the_weights_and_records_which(trains, tmp_path, weights):
    keys = ("train.budget.steps=1", "schedule.lr=1e-12", "schedule.warmup={ steps = 0 }")
    code, _, err = trains("--init-from", weights, keys=keys)
    assert code == 0, err
    folder = only(tmp_path)
    (told,) = [event for event in events(folder) if event["event"] == "Pretrained"]
    assert (told["weights"], told["tensors"], told["repack"]) == (str(weights), 28, "exact")
    assert f'sha256 = "{told["sha256"]}"  # of the weights' in (folder / "resolved.toml").read_text()
    held = load(listed(folder / "checkpoints")[0]).model
    table = HF["tensors_of"](CONFIG)["wte.weight"] * 0.1
    torch.testing.assert_close(held["wte.weight"], table, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_goes_on_when_the_file_has_gone(trains, tmp_path, weights, precision):
    keys = (*STEPS, f"train.precision={precision}")
    assert trains("--init-from", weights, keys=keys)[0] == 0
    folder = only(tmp_path)
    newest = listed(folder / "checkpoints")[0]
    ended = load(newest).model
    shutil.rmtree(newest)
    (folder / "state.json").unlink()
    shutil.rmtree(weights)
    code, _, err = trains("--init-from", weights, "--resume", "must", keys=keys)
    assert code == 0, err
    assert only(tmp_path) == folder
    again = load(newest).model
    assert all(torch.equal(ended[name], again[name]) for name in ended)


def test_the_same_weights_elsewhere_are_the_same_run(trains, tmp_path, weights):
    assert trains("--init-from", weights)[0] == 0
    moved = shutil.copytree(weights, tmp_path / "moved")
    code, out, _ = trains("--init-from", moved)
    assert code == 0
    assert "done" in json.loads(out.splitlines()[-1])
    HF["write"](moved, {name: 0.2 * t for name, t in HF["tensors_of"](CONFIG).items()}, CONFIG)
    assert trains("--init-from", moved)[0] == 0
    assert len(list((tmp_path / "runs").glob("*/s1"))) == 2


def test_a_rehearsal_begins_with_them_and_leaves_nothing(trains, tmp_path, weights):
    code, out, err = trains("--init-from", weights, "--dry-run")
    assert code == 0, err
    assert "Pretrained" not in out
    assert "begins with the 28 tensors" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("keys", "spoil", "code", "message"),
    [
        ((), lambda path: shutil.rmtree(path), 66, "gpt2: no such file or folder"),
        ((), lambda path: (path / "model.safetensors").write_bytes(b"x" * 50), 65, "not a whole safetensors file"),
        (("model.n_layer=1",), lambda path: None, 78, "--set: model.n_layer: must be 2"),
        (("init.repack=other",), lambda path: None, 78, "init.repack"),
    ],
)
def test_what_cannot_be_begun_with_leaves_no_folder(trains, tmp_path, weights, keys, spoil, code, message):
    spoil(weights)
    found, _, err = trains("--init-from", weights, keys=(*STEPS, *keys))
    assert (found, message in err) == (code, True), err
    assert not (tmp_path / "runs").exists()


def test_a_reciprocal_form_needs_weights(trains):
    found, _, err = trains(keys=(*STEPS, "init.repack=reciprocal"))
    assert (found, "sha256 and repack need weights" in err) == (78, True), err
