"""A run knows the code it depends on: what it uses, and nothing else."""

import shutil
from pathlib import Path

import ratrain
from ratrain.storage import code_digests as digest
from ratrain.storage.code_digests import changed_files, code_digests, some


def test_the_kinds_that_a_manifest_names_are_part_of_it(tiny):
    plain, gated = code_digests(tiny("v0")), code_digests(tiny("v1"))
    assert changed_files(plain, gated) == ["ratrain/patches/unified_ra.py"]
    assert {"ratrain/model/gpt2.py", "ratrain/engine/step.py", "ratrain/recipe/optim/adamw.py"} <= plain.keys()
    assert "ratrain/kernels/linear_cross_entropy/op.py" in plain
    assert not [name for name in plain if name.startswith(("ratrain/sinks", "ratrain/cli"))]


def test_an_edit_is_told_by_its_file_and_a_sink_is_none_of_it(tiny, tmp_path, monkeypatch):
    copy = shutil.copytree(Path(ratrain.__file__).parent, tmp_path / "ratrain")
    monkeypatch.setattr(digest, "_ROOT", copy)
    before = code_digests(tiny("v0"))
    for name in ("model/gpt2.py", "sinks/jsonl.py"):
        (copy / name).write_text((copy / name).read_text() + "\n")
    (copy / "recipe" / "new.py").write_text("")
    assert changed_files(before, code_digests(tiny("v0"))) == ["ratrain/model/gpt2.py", "ratrain/recipe/new.py"]


def test_a_message_names_a_few_files_and_counts_the_rest():
    assert some(["a.py"]) == "a.py"
    assert some(["a.py", "b.py", "c.py"]) == "a.py, b.py and c.py"
    assert some(["a.py", "b.py", "c.py", "d.py", "e.py"]) == "a.py, b.py, c.py and 2 more files"


def test_every_pattern_finds_sources(tiny):
    """A folder that was moved must not drop out of the digests unseen."""
    for pattern in digest._ALWAYS:
        assert list(digest._ROOT.glob(pattern)), pattern
    digests = code_digests(tiny("v9"))
    for name in (
        "engine/step.py",
        "engine/parts/pruning.py",
        "model/gpt2.py",
        "data/sampling.py",
        "recipe/schedule.py",
    ):
        assert f"ratrain/{name}" in digests
