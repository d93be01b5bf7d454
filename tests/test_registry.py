"""Kinds are found where their files are: in the package, in folders, through entry points."""

import textwrap
from importlib.metadata import EntryPoint

import pytest

from ratrain import registry
from ratrain.errors import DataError, MissingError, UsageError
from ratrain.patches.unified_ra import UnifiedRA
from ratrain.registry import optim_kinds, patch_kinds, plugin_files

PATCH = """
    from ratrain.registry import Patch, register

    @register("{kind}")
    class Mine(Patch):
        target: str = "blocks.*.attn.core"

        def build(self, old, spec):
            return old
"""


def write(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


def test_every_file_of_the_package_is_a_kind_named_like_it():
    kinds = patch_kinds()
    assert kinds["unified_ra"] is UnifiedRA
    assert all(kinds[kind].kind == kind for kind in kinds)
    assert all(optim_kinds()[kind].kind == kind for kind in optim_kinds())


def test_a_file_of_a_folder_is_a_kind(tmp_path):
    kinds = patch_kinds([write(tmp_path / "patches", "mine", PATCH.format(kind="mine"))])
    assert kinds["mine"].kind == "mine"
    assert [file.name for file in plugin_files([kinds["mine"]()])] == ["mine.py"]
    assert not plugin_files([UnifiedRA()])


def test_an_entry_point_is_a_kind(monkeypatch):
    entry = EntryPoint("from_elsewhere", "ratrain.patches.unified_ra:UnifiedRA", "ratrain.patches")
    monkeypatch.setattr(registry, "offered", lambda group: (entry,) if group == "ratrain.patches" else ())
    assert patch_kinds()["from_elsewhere"] is UnifiedRA


def test_a_file_is_not_imported_before_its_kind_is_asked_for(tmp_path):
    folder = write(tmp_path / "patches", "broken", "raise RuntimeError('imported')")
    kinds = patch_kinds([folder])
    assert "broken" in kinds
    with pytest.raises(DataError, match=r"broken\.py: cannot be imported: RuntimeError: imported"):
        kinds["broken"]


def test_a_file_that_defines_another_kind_is_refused(tmp_path):
    folder = write(tmp_path / "patches", "mine", PATCH.format(kind="yours"))
    with pytest.raises(DataError, match=r"mine\.py: defines no class marked @register\('mine'\)"):
        patch_kinds([folder])["mine"]


def test_a_kind_that_exists_is_refused(tmp_path):
    folder = write(tmp_path / "patches", "unified_ra", PATCH.format(kind="unified_ra"))
    with pytest.raises(UsageError, match="'unified_ra' exists already"):
        patch_kinds([folder])


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(MissingError, match="no such folder of patches"):
        patch_kinds([tmp_path / "nowhere"])
