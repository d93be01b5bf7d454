"""The README and the pages of docs/: their code runs, their links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import ratrain

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "LOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_is_named_exists(page):
    named = re.findall(r"`((?:ratrain|tests|bench|kernels|legacy|manifests|docs)/[\w./-]+)`", page.read_text())
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_readme_invites_in_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "mechanisms.md"], ids=lambda page: page.name)
def test_the_mechanism_of_the_page_is_built_and_is_the_base_model_while_switched_off(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in blocks(page, "python") if "@register" in block)
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "temperature.py").write_text(code)
    (tmp_path / "my_idea.toml").write_text(
        'id = "mine"\nextends = "gpt2.toml"\n[patch.temperature]\ntarget = "blocks.*.attn.score"\n'
    )
    mine, base = ratrain.load("my_idea.toml", scale="tiny").model, ratrain.load("gpt2", scale="tiny").model
    tokens = torch.arange(16)[None]
    for name, buffer in mine.named_buffers():
        if name.endswith(".s"):
            buffer.zero_()
    assert torch.equal(mine.logits(tokens), base.logits(tokens))
    assert any(name.endswith("heat") for name, _ in mine.named_parameters())


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    monkeypatch.setattr("ratrain.engine.engine._SAMPLE_TOKENS", 2)
    import notebook

    space = notebook.run(json.loads(notebook.NOTEBOOK.read_text()))
    torch.use_deterministic_algorithms(False)
    assert space["run"].status == "done"
    assert space["verdict"].arm == "mine"
    assert space["found"].exit == 0
    assert space["found"].page.is_file()
    text = notebook.NOTEBOOK.read_text()
    assert text.count("FAULT") == 1  # in the code, and in no output
    assert f"done at step {space['run'].windows[-1].step}," in text  # the stored outputs are those of the code
    assert str(Path.home()) not in text


def test_the_code_for_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ratrain.engine.engine._SAMPLE_TOKENS", 2)
    (code,) = (block for block in blocks(ROOT / "README.md", "python") if "ratrain.train(" in block)
    quick = 'scale="tiny", overrides=["compile.scope=off", "train.budget={steps=2}", "eval.windows=2"]'
    exec(code.replace('scale="tiny"', quick), {})
    torch.use_deterministic_algorithms(False)
    assert re.search(r"^\d\.\d+$", capsys.readouterr().out, re.MULTILINE)
