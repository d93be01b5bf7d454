"""A folder as the pages assume one: trained runs, an idea, a study, text, a decoder, a task."""

from __future__ import annotations

import json
import shutil

import pytest

from ratrain.cli import main
from tests.docs.blocks import ROOT, blocks, blocks_of
from tests.docs.lines import tiny

_PATCH = ROOT / "docs" / "tutorial" / "first_mechanism.md"


@pytest.fixture(scope="session")
def furnished(tmp_path_factory):
    """The folder, made once: v9 is its newest run."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "patches").mkdir()
    for block in blocks_of(_PATCH):
        if block.file:
            (folder / block.file).write_text(block.text)
    for name in ("a", "b", "next"):
        (folder / f"{name}.toml").write_text(f'id = "{name}"\nextends = "my_idea.toml"\n')
    (folder / "study.toml").write_text('id = "study"\nscale = "tiny"\narms = ["v9"]\n')
    shutil.copy(ROOT / "tests/zoo/decoders/_base.py", folder / "model.py")
    shutil.copy(ROOT / "ratrain/legacy/defconfigs/gpt2-vanilla-baseline", folder / "old_defconfig")
    (folder / "corpus").mkdir()
    acts = [f"Act {act}. To be, or not to be, that is the question.\n" * 9 for act in range(99)]
    (folder / "corpus" / "text.txt").write_text("<|endoftext|>".join(acts))
    (folder / "my_tasks").mkdir()
    (task,) = blocks("yaml")
    (folder / "my_tasks" / "word.yaml").write_text(task.text)
    rows = [{"q": "To", "choices": ["be", "xq"], "gold": 0}, {"q": "Enter", "choices": ["xq", "HAMLET"], "gold": 1}]
    (folder / "my_tasks" / "documents.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("ratrain.engine.engine._SAMPLE_TOKENS", 2)
        for name in ("v0", "v19", "v9"):
            assert main([*tiny([name]), "--json"]) == 0
        assert main(["prepare", "corpus", "--out", "data/shards", "--jobs", "1"]) == 0
    return folder


@pytest.fixture
def place(furnished, tmp_path, monkeypatch):
    """Makes a copy of the folder the current one, with the files that a page's blocks are."""

    def place(page, name="copy"):
        folder = shutil.copytree(furnished, tmp_path / name)
        for block in blocks_of(page):
            if block.file:
                (folder / block.file).write_text(block.text)
        monkeypatch.chdir(folder)
        return folder

    return place
