"""The README, the pages of docs/ and their notebook: links and paths lead somewhere. tests/docs runs their blocks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
TOP = [ROOT / name for name in ("README.md", "LOG.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]
HOOK = (ROOT / "docs" / "hooks" / "site_hooks.py").read_text()
GENERATED = {ROOT / "docs" / page for page in re.findall(r'^    "(reference/\w+\.md)":', HOOK, re.MULTILINE)}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    places = [(page.parent / target).resolve() for target in targets if "://" not in target]
    assert GENERATED
    assert not [place for place in places if not place.exists() and place not in GENERATED]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_that_is_named_exists(page):
    named = re.findall(r"`((?:ratrain|tests|bench|kernels|legacy|manifests|docs)/[\w./-]+)`", page.read_text())
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_readme_invites_in_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


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
