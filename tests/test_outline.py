"""An outline of a kind checks, holds and writes what the whole kind does, or gives way to it."""

from __future__ import annotations

import sys
from textwrap import dedent, indent

import pytest

from ratrain.config.find import shipped
from ratrain.config.identity import plain, recipe_hash
from ratrain.config.read import find_manifest, read_source
from ratrain.config.resolve import resolve
from ratrain.errors import DataError, ManifestError
from ratrain.outline import PREFIX
from ratrain.registry import declared, optim_kinds, patch_kinds, plugin_files
from ratrain.storage.code_digests import code_digests

FAMILIES = {"patches": patch_kinds(), "optimizers": optim_kinds()}
KINDS = [(family, kind) for family, kinds in FAMILIES.items() for kind in kinds]


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_an_outline_of_every_kind_has_the_schema_of_the_whole(family, kind):
    whole, outline = FAMILIES[family][kind], FAMILIES[family].outlines()[kind]
    assert outline.__module__.startswith(PREFIX)
    assert outline.model_json_schema() == whole.model_json_schema()
    assert [base.__name__ for base in outline.__mro__] == [base.__name__ for base in whole.__mro__]


@pytest.mark.parametrize("file", shipped(), ids=lambda file: file.stem)
def test_outlines_resolve_every_manifest_to_the_same(file):
    source = read_source(file)
    whole, outlined = resolve(source, **FAMILIES), declared(source, FAMILIES["patches"])
    assert plain(outlined) == plain(whole)
    assert recipe_hash(outlined) == recipe_hash(whole)
    assert code_digests(outlined) == code_digests(whole)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("v9", key) for key in ("unified_ra.rnk=4", "unified_ra.rank=0", "unified_ra.gates='x'", "unified_ra=1")),
        *(("v19", key) for key in ("kv_prune.keep=2.5", "kv_prune.mode='x'", "kv_prune.recency=-1")),
        *(("c1", key) for key in ("kv_splice.channels='x'", "kv_splice.epochs=0")),
        *(("l6", key) for key in ("lens.context.init=1e9", "lens.contxt=1", "lens.route=1")),
        *(("recip3", key) for key in ("ra_mla.latent=0", "ra_mla.cross.k=0", "ra_mla.cross_token.tau=0.0")),
    ],
)
def test_outlines_refuse_in_the_same_words(name, key):
    source = read_source(find_manifest(name), overrides=[f"patch.{key}", "optim.bettas=1"])
    told = []
    for kinds in (FAMILIES, {family: kinds.outlines() for family, kinds in FAMILIES.items()}):
        with pytest.raises(ManifestError) as error:
            resolve(source, **kinds)
        told.append(error.value.faults)
    assert told[0] == told[1]


# files of others

PLAIN = """
    from torch import nn
    import torch.nn.functional as F
    from ratrain.registry import Patch, register
    from pydantic import model_validator

    @register("mine")
    class Mine(Patch):
        target: str = "blocks.*.attn.core"
        size: int = 3
    {body}
        def build(self, old: nn.Module, spec) -> nn.Module:
            return Core()

    class Core(nn.Module):
        pass
    {rest}
"""
CHECK = """
    @model_validator(mode="after")
    def _check(self):
        {}
        return self
"""
# what an outline tells without the file, and what only an import can tell
OUTLINED = {
    "no more": ("", ""),
    "a check of its own": (CHECK.format("if self.size > 3: raise ValueError('size is at most 3')"), ""),
    "functions and constants": ("", "_ACTS = {'relu': F.relu}\ndef helper(x: nn.Module): return F.relu(x)"),
}
WHOLE = {
    "a default that torch knows": ("    scale: int = len(F.__name__)", ""),
    "a check that asks torch": (CHECK.format("hasattr(F, 'relu') or 1 / 0"), ""),
    "a check that asks a table of modules": (CHECK.format("'relu' in _ACTS or 1 / 0"), "_ACTS = {'relu': F.relu}"),
    "a check that catches all exceptions": (
        CHECK.format("try: F.relu\n        except Exception: raise ValueError('torch is not there')"),
        "",
    ),
    "a check by class": (CHECK.format("assert not isinstance(self, nn.Module)"), ""),
    "an optional import": ("", "try:\n    import json\nexcept ImportError:\n    json = None"),
    "a change to the class": ("", "Mine.limit = 4"),
}


def plug_in(tmp_path, body, rest):
    folder = tmp_path / "patches"
    folder.mkdir(exist_ok=True)
    text = dedent(PLAIN).format(body=indent(dedent(body), "    "), rest=rest)
    (folder / "mine.py").write_text(text)
    (tmp_path / "mine.toml").write_text('id = "mine"\nextends = "gpt2.toml"\n[patch.mine]\n')
    source = read_source(tmp_path / "mine.toml")
    return source, patch_kinds([folder])


@pytest.mark.parametrize(("body", "rest"), OUTLINED.values(), ids=OUTLINED.keys())
def test_a_plain_file_is_outlined(tmp_path, body, rest):
    source, kinds = plug_in(tmp_path, body, rest)
    (options,) = declared(source, kinds).patch.values()
    assert type(options).__module__ == f"{PREFIX}ratrain_plugin_mine"
    assert plugin_files([options]) == [tmp_path / "patches" / "mine.py"]


@pytest.mark.parametrize(("body", "rest"), WHOLE.values(), ids=WHOLE.keys())
def test_a_file_that_needs_more_is_imported(tmp_path, body, rest):
    source, kinds = plug_in(tmp_path, body, rest)
    (options,) = declared(source, kinds).patch.values()
    assert type(options).__module__ == "ratrain_plugin_mine"


def test_an_edit_is_seen_at_once(tmp_path):
    for size in (3, 4):
        source, kinds = plug_in(tmp_path, f"    other: int = {size}", "")
        assert declared(source, kinds).patch["mine"].other == size


@pytest.mark.parametrize("line", ["import nothing_of_this_name", "1 / 0", "raise RuntimeError", "def (", "x = y"])
def test_a_broken_file_fails_as_its_import_does(tmp_path, line):
    source, kinds = plug_in(tmp_path, "", line)
    with pytest.raises(DataError, match=r"mine\.py: cannot be imported: "):
        declared(source, kinds)
    assert not [name for name in sys.modules if name.startswith(PREFIX)]


def test_no_outline_is_left_among_the_modules(tmp_path):
    """Pickle walks through all modules: torch.compile's cache did, and met what is absent from an outline."""
    for body, rest in (*OUTLINED.values(), *WHOLE.values()):
        source, kinds = plug_in(tmp_path, body, rest)
        declared(source, kinds)
    assert not [name for name in sys.modules if name.startswith(PREFIX)]
