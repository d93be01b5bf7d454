"""A run of a user's patch whose loss would mean nothing is refused before it begins."""

from __future__ import annotations

import pytest
import torch

import ratrain as front
from ratrain.contracts import meaning
from ratrain.errors import Exit, ManifestError

PATCH = """
from ratrain import Mechanism, Patch, register
from torch import nn

@register("mean")
class Mean(Patch):
    target: str = "blocks.*.attn.blend"
    declared: bool = False

    @property
    def leaks(self):
        return "it averages over all tokens" if self.declared else None

    def build(self, old, spec):
        return Blend()

class Blend(Mechanism):
    def reset_parameters(self, generator):
        super().reset_parameters(generator)

    def forward(self, y, v, x):
        return y + self.s * {what}
"""
QUICK = ["compile.scope=off", "train.budget={steps=2}", "eval.windows=2"]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes a manifest of a patch that adds an expression to the output of attention."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ratrain.engine.engine._SAMPLE_TOKENS", 2)

    def mine(what: str):
        (tmp_path / "patches").mkdir(exist_ok=True)
        (tmp_path / "patches" / "mean.py").write_text(PATCH.format(what=what))
        (tmp_path / "mine.toml").write_text('id = "mine"\nextends = "gpt2.toml"\n[patch.mean]\n')
        return "mine.toml"

    yield mine
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--devices", "2"]], ids=" ".join)
def test_a_leaking_patch_is_refused_and_nothing_is_written(ratrain, mine, tmp_path, more):
    quick = [word for key in QUICK for word in ("--set", key)]
    code, _, err = ratrain(mine("v.mean(2, keepdim=True)"), "--scale", "tiny", "--device", "cpu", *quick, *more)
    assert code == Exit.BAD_MANIFEST
    assert "mine.toml" in err
    assert "patch.mean: the model sees the future" in err
    assert "`ratrain verify` checks every contract" in err
    assert not (tmp_path / "runs").exists()


def test_from_python_too_and_a_declared_leak_is_trained_with_a_warning(mine):
    name, quick = mine("v.mean(2, keepdim=True)"), {"scale": "tiny", "overrides": QUICK}
    with pytest.raises(ManifestError, match="the model sees the future"):
        front.train(name, **quick)
    run = front.train(name, scale="tiny", overrides=[*QUICK, "patch.mean.declared=true"])
    assert any("is not causal" in text for text in run.warnings)


def test_an_honest_patch_trains_the_same_with_the_check(mine, monkeypatch):
    name = mine("0.1 * v")
    checked = front.train(name, scale="tiny", overrides=QUICK, out="a")
    monkeypatch.setattr(meaning, "breaches", lambda manifest: iter(()))
    assert front.train(name, scale="tiny", overrides=QUICK, out="b").losses() == checked.losses()


def test_shipped_patches_are_not_checked_again(tiny_source, tiny, monkeypatch):
    monkeypatch.setattr(meaning, "breaches", lambda manifest: iter(["checked"]))
    meaning.require_meaning(tiny("v9"), tiny_source("v9"))
    meaning.require_meaning(tiny("l6"), tiny_source("l6"))
