"""The functions that `import ratrain` offers, as a notebook uses them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import ratrain
from ratrain import api
from ratrain.errors import Exit, ManifestError, MissingError
from ratrain.events import Evaluated, RunEnded

QUICK = ("compile.scope=off", "train.budget={steps=4}", "eval.windows=2", "log.every=2")


@pytest.fixture(autouse=True)
def short_sample(monkeypatch, tmp_path):
    monkeypatch.setattr("ratrain.engine.engine._SAMPLE_TOKENS", 2)
    monkeypatch.chdir(tmp_path)
    yield
    torch.use_deterministic_algorithms(False)


def test_every_function_is_offered_and_described():
    assert set(ratrain._API) == set(api.__all__) <= set(dir(ratrain))
    for name in api.__all__:
        assert getattr(ratrain, name) is getattr(api, name)
        assert getattr(ratrain, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ratrain.nothing


def test_importing_the_package_imports_nothing():
    code = "import sys, ratrain; print(sorted(m for m in sys.modules if m in ('torch', 'pydantic', 'ratrain.api')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_run_is_trained_then_returned_then_read(capsys):
    seen = []
    run = ratrain.train("v9", scale="tiny", overrides=QUICK, on_event=seen.append)
    assert (run.status, len(run.losses()[1])) == ("done", 4)
    assert [event.loss for event in seen if isinstance(event, Evaluated)][-1] == run.evaluated[-1].loss

    again = ratrain.train("v9", scale="tiny", overrides=QUICK, on_event=seen.append)
    assert again.path == run.path
    assert sum(isinstance(event, RunEnded) for event in seen) == 1  # it was not trained again
    assert ratrain.read_run("@last").evaluated == ratrain.resume(run.path).evaluated == run.evaluated
    assert "step" not in capsys.readouterr().out  # a sink of one's own, and nothing printed


def test_by_default_a_handful_of_lines_is_printed(capsys):
    ratrain.train("gpt2", scale="tiny", overrides=QUICK)
    lines = capsys.readouterr().out.splitlines()
    assert any("validation loss" in line for line in lines)
    assert not any("tok/s" in line for line in lines)


def test_what_is_loaded_has_the_weights_of_the_run():
    run = ratrain.train("v9", scale="tiny", overrides=QUICK)
    loaded, fresh = ratrain.load(run.path), ratrain.load("v9", scale="tiny")
    tokens = torch.tensor([loaded.tokenizer.encode("Enter HAMLET")])
    assert not loaded.model.training
    assert loaded.model.logits(tokens).shape == (1, tokens.shape[1], loaded.model.wte.weight.shape[0])
    assert not torch.equal(loaded.model.wte.weight, fresh.model.wte.weight)
    assert torch.equal(ratrain.load("@last").model.wte.weight, loaded.model.wte.weight)


def test_contracts_are_checked():
    assert [verdict.claim for verdict in ratrain.verify("v1") if verdict.fault] == []


def test_faults_are_raised_with_their_place_and_exit_code():
    with pytest.raises(ManifestError, match=r"schedule\.lrr: unknown key") as caught:
        ratrain.train("v9", overrides=["schedule.lrr=1"])
    assert caught.value.exit == Exit.BAD_MANIFEST
    with pytest.raises(MissingError):
        ratrain.load("no such variant")


def test_a_plug_in_that_takes_its_classes_from_here_is_shown_without_torch(tmp_path):
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "mine.py").write_text(
        "import torch\nfrom ratrain import Mechanism, Patch, register\n\n\n@register('mine')\nclass Mine(Patch):\n"
        "    target: str = 'blocks.*.attn.blend'\n    rank: int = 4\n\n    def build(self, old, spec):\n"
        "        return Mechanism()\n"
    )
    (tmp_path / "mine.toml").write_text('id = "mine"\nextends = "gpt2.toml"\n[patch.mine]\nrank = 8\n')
    code = "import sys; from ratrain.cli import main; main(['show', 'mine.toml']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "rank = 8" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
