"""Weights as one file: dense again to the bit, small where they are pruned, nonsense refused."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from ratrain.errors import DataError, MissingError
from ratrain.export.packed import FORMAT, export, read_export
from ratrain.storage.checkpoint import load_newest

PRUNED = ("train.budget.steps=10", "prune.kind=magnitude", "prune.target=0.9", "prune.every=2")


@pytest.fixture(scope="module")
def run(trained):
    return trained("gpt2", *PRUNED)


def weights_of(folder):
    checkpoint, _, _ = load_newest(folder / "checkpoints")
    return checkpoint.model


def test_a_pruned_run_comes_back_to_the_bit_from_a_smaller_file(run, tmp_path):
    done = export(run, tmp_path / "w.safetensors", warn=pytest.fail)
    weights, back = weights_of(run), read_export(tmp_path / "w.safetensors")
    assert weights.keys() == back.keys()
    assert all(torch.equal(weights[name] + 0.0, back[name]) for name in weights)  # a zero loses its sign
    assert done.sparsity == pytest.approx(0.9, abs=1e-4)
    matrices = sum(t.nbytes for name, t in weights.items() if name.startswith("blocks.") and t.dim() == 2)
    assert done.dense - done.packed == pytest.approx(matrices * (0.9 - 1 / 32), rel=1e-3)
    assert (tmp_path / "w.safetensors").stat().st_size == pytest.approx(done.packed, rel=0.05)


def test_weights_that_are_kept_without_masks_are_as_small(run, tmp_path, monkeypatch):
    whole = export(run, tmp_path / "whole", warn=pytest.fail)
    monkeypatch.setattr("ratrain.export.packed.masks_of", lambda tensors: {})
    alone = export(run, tmp_path / "alone", warn=pytest.fail)
    assert (alone.packed, alone.sparsity) == (whole.packed, whole.sparsity)
    assert all(torch.equal(t, read_export(tmp_path / "alone")[n]) for n, t in read_export(tmp_path / "whole").items())


def test_a_run_that_prunes_nothing_is_exported_as_it_is(trained, ratrain, tmp_path):
    folder = trained("gpt2", "train.budget.steps=2")
    code, out, _ = ratrain("export", folder, "-o", tmp_path / "w.safetensors", "--json")
    told = json.loads(out.splitlines()[-1])
    assert (code, told["dense"], told["sparsity"], told["step"]) == (0, told["packed"], 0.0, 2)
    weights, back = weights_of(folder), safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(weights[name], back[name]) for name in weights)


def test_the_command_tells_what_it_saved(ratrain, run):
    code, out, _ = ratrain("export", run)
    assert code == 0
    assert "90.00% of the pruned matrices left out" in out
    assert (run / "weights.safetensors").is_file()


def test_dense_is_what_any_reader_of_safetensors_takes(ratrain, run, tmp_path):
    code, out, _ = ratrain("export", run, "--dense", "-o", tmp_path / "w.safetensors")
    assert code == 0
    assert "90.00% of the pruned matrices zero" in out
    weights, back = weights_of(run), safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert weights.keys() == back.keys()
    assert all(torch.equal(weights[name], back[name]) for name in weights)
    assert read_export(tmp_path / "w.safetensors").keys() == weights.keys()


def test_files_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(MissingError, match="no such file"):
        read_export(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(DataError, match="no safetensors file"):
        read_export(tmp_path / "text")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "plain")
    with pytest.raises(DataError, match="not written by ratrain export"):
        read_export(tmp_path / "plain")


@pytest.mark.parametrize(
    ("tensors", "shapes"),
    [
        ({"a.mask": torch.ones(1, dtype=torch.uint8)}, {"a": [8]}),
        ({"a.mask": torch.ones(1, dtype=torch.uint8), "a.kept": torch.ones(3)}, {"a": [8]}),
        ({"a.mask": torch.ones(1, dtype=torch.uint8), "a.kept": torch.ones(1)}, {"a": [80]}),
        ({"a.mask": torch.ones(1, dtype=torch.uint8), "a.kept": torch.ones(1)}, [1, 2]),
    ],
    ids=["no values", "too many", "another shape", "no table"],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, tensors, shapes):
    file, about = tmp_path / "w", {"format": FORMAT, "shapes": json.dumps(shapes)}
    safetensors.torch.save_file(tensors, file, metadata=about)
    with pytest.raises(DataError, match="contradicts itself"):
        read_export(file)
