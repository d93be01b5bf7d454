"""Finding, merging and overriding: who wins, and what a user is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ratrain.config.catalogue import catalogue
from ratrain.config.find import SCALES, find_scale, scales, shipped
from ratrain.config.parse import MAX_BYTES, SHIPPED, label_of
from ratrain.config.read import OWN, find_manifest, read_source
from ratrain.config.resolve import resolve
from ratrain.config.schema import Budget, Span
from ratrain.errors import Exit, ManifestError, MissingError, UsageError
from ratrain.registry import optim_kinds, patch_kinds


@pytest.mark.parametrize("name", ["v9", "unified_ra_v9", "unified_ra_v9.toml", "manifests/unified_ra_v9.toml"])
def test_a_manifest_is_found_by_id_stem_name_and_short_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_manifest(name).name == "unified_ra_v9.toml"
    assert label_of(find_manifest(name)) == "manifests/unified_ra_v9.toml"


@pytest.mark.parametrize("left", [None, "ratrain/manifests"], ids=["no folder", "a link as text"])
def test_paths_of_a_clone_name_what_is_shipped_where_its_links_are_none(left, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if left:
        Path("manifests").write_text(left)
    assert find_manifest("./manifests/unified_ra_v9.toml") == SHIPPED / "unified_ra_v9.toml"
    assert find_scale("manifests/scale/tiny.toml") == SCALES / "tiny.toml"
    for name in ("manifests/../model/gpt2.py", "engine/engine.py", "manifests/scale"):
        with pytest.raises(MissingError, match="no such manifest, by path, name or id"):
            find_manifest(name)


def test_a_file_wins_over_a_shipped_name(write):
    path = write("v9", "id = 'mine'")
    assert find_manifest("v9").resolve() == path


@pytest.mark.parametrize("name", ["v99", "unified_ra_v9.tml", "a\0b", "x" * 5000, "", ".", "/", "scale/tiny"])
def test_an_unknown_manifest_is_missing(name):
    with pytest.raises(MissingError) as error:
        find_manifest(name)
    assert error.value.exit == Exit.MISSING == 66


def test_an_unknown_manifest_gets_the_nearest_name():
    with pytest.raises(MissingError, match=r"did you mean 'unified_ra_v9.toml'\?"):
        find_manifest("unifed_ra_v9.toml")


def test_an_unknown_path_gets_the_nearest_file_beside_it(write):
    write("headgate.toml", "id = 'headgate'")
    with pytest.raises(MissingError, match=r"did you mean 'headgate.toml'\?"):
        find_manifest("headgat.toml")


def test_labels_are_relative_below_the_current_folder_and_as_given_elsewhere(write, tmp_path):
    assert label_of(write("a.toml", "")) == "a.toml"
    assert label_of(Path("/nowhere/b.toml")) == "/nowhere/b.toml"
    assert label_of(Path("a\nb\0")) == "a?b?"


def test_tables_merge_and_other_values_replace(write):
    write("low.toml", "x = [1, 2]\n[t]\na = 1\nb = 1\n[t.u]\nc = 1")
    source = read_source(write("top.toml", "extends = 'low.toml'\nx = [3]\n[t]\nb = 2\nu.d = 2"))
    assert source.tree == {"x": [3], "t": {"a": 1, "b": 2, "u": {"c": 1, "d": 2}}}
    assert {key: str(source.origins[key]) for key in ("x", "t.a", "t.b", "t.u.c", "t.u.d")} == {
        "x": "top.toml:2", "t.a": "low.toml:3", "t.b": "top.toml:4", "t.u.c": "low.toml:6", "t.u.d": "top.toml:5",
    }  # fmt: skip
    assert [file.name for file in source.files] == ["low.toml", "top.toml"]


def test_a_value_that_replaces_a_table_takes_its_origins_along(write):
    write("low.toml", "[t]\na = 1")
    source = read_source(write("top.toml", "extends = 'low.toml'\nt = 3"))
    assert source.tree == {"t": 3}
    assert set(source.origins) == {"t"}


def test_a_file_reached_twice_counts_once(write):
    write("base.toml", "x = 0\ny = 0")
    write("a.toml", "extends = 'base.toml'\nx = 1")
    write("b.toml", "extends = 'base.toml'\ny = 1")
    source = read_source(write("top.toml", "extends = ['a.toml', 'b.toml']"))
    assert source.tree == {"x": 1, "y": 1}
    assert [file.name for file in source.files] == ["base.toml", "a.toml", "b.toml", "top.toml"]


def resolved(source):
    return resolve(source, patches=patch_kinds(beside=source.files), optimizers=optim_kinds())


@pytest.mark.parametrize("steps", ["budget.steps = 5", "budget = { steps = 5 }", "[train.budget]\nsteps = 5"])
def test_a_budget_replaces_a_budget_however_it_is_written(write, steps):
    write("low.toml", "extends = 'gpt2.toml'\nid = 'low'\n[train]\nbudget = { tokens = 9 }")
    table = "" if steps.startswith("[") else "[train]\n"
    source = read_source(write("top.toml", f"extends = 'low.toml'\nid = 'top'\n{table}{steps}"))
    assert resolved(source).train.budget == Budget(steps=5)


def test_a_budget_that_is_set_replaces_a_budget():
    for override in ("train.budget.steps=5", "train.budget={steps=5}", "train = { budget.steps = 5 }"):
        assert resolved(read_source(find_manifest("v9"), overrides=[override])).train.budget == Budget(steps=5)


SPANNED = """
from ratrain import Patch, register
from ratrain.config.schema import ActivationSection, Span
from torch import nn

@register("spanned")
class Spanned(Patch):
    target: str = "blocks.*.attn.score"
    width: Span | None = None

    def build(self, old, spec):
        return nn.Identity()
"""


@pytest.mark.parametrize("key", ["width", "activation.after"])
def test_a_span_of_a_plug_in_replaces_an_inherited_one(write, key, tmp_path):
    (tmp_path / "patches").mkdir()
    write("patches/spanned.py", SPANNED)
    kind = "\nactivation.kind = 'after'" if "." in key else ""
    write("low.toml", f"extends = 'gpt2.toml'\nid = 'low'\n[patch.spanned]\n{key} = {{ fraction = 0.1 }}{kind}")
    top = write("top.toml", f"extends = 'low.toml'\nid = 'top'\n[patch.spanned]\n{key} = {{ steps = 3 }}")
    for override, span in ((), Span(steps=3)), ([f"patch.spanned.{key}.fraction=0.2"], Span(fraction=0.2)):
        found = resolved(read_source(top, overrides=override)).patch["spanned"]
        assert (found.width if key == "width" else found.activation.after) == span
    both = write("both.toml", f"extends = 'top.toml'\nid = 'both'\n[patch.spanned.{key}]\nsteps = 3\nfraction = 0.1")
    with pytest.raises(ManifestError, match="expected exactly one of fraction, steps"):
        resolved(read_source(both))


def test_two_units_in_one_file_are_refused(write):
    source = read_source(write("a.toml", "extends = 'gpt2.toml'\nid = 'a'\n[train.budget]\nsteps = 1\ntokens = 1"))
    with pytest.raises(ManifestError, match=r"train\.budget: expected exactly one of tokens, steps, seconds"):
        resolved(source)


def test_what_a_file_says_of_itself_is_not_inherited(write):
    write("low.toml", "id = 'low'\ntitle = 'Low'\nsame_as = 'x'\nseed.init = 3\n[origin]\nstep = 'V1'")
    source = read_source(write("top.toml", "extends = 'low.toml'\nid = 'top'"))
    assert source.tree == {"id": "top", "seed": {"init": 3}}
    assert not any(name in source.origins for name in OWN if name != "id")


def test_an_explicit_scale_wins_over_the_manifest_and_a_set_over_both(write):
    mine = write("mine.toml", "extends = 'gpt2.toml'\nid = 'mine'\n[model]\nn_layer = 3\nmlp_ratio = 6")
    assert read_source(mine).tree["model"]["n_layer"] == 3
    assert read_source(mine).tree["scale"] == "laptop"
    scaled = read_source(mine, scale="gpt2_124m")
    assert (scaled.tree["scale"], scaled.tree["model"]["n_layer"], scaled.tree["model"]["mlp_ratio"]) == (
        "gpt2_124m", 12, 6,
    )  # fmt: skip
    assert read_source(mine, scale="tiny", overrides=["model.n_layer=7"]).tree["model"]["n_layer"] == 7


def test_a_scale_may_be_a_file_and_is_named_after_it(write):
    path = write("wide.toml", "[model]\nn_embd = 384")
    tree = read_source(find_manifest("v9"), scale=str(path)).tree
    assert (tree["scale"], tree["model"]["n_embd"]) == ("wide", 384)


def test_an_unknown_scale_lists_the_scales():
    with pytest.raises(UsageError, match="laptop") as error:
        read_source(find_manifest("v9"), scale="huge")
    assert all(scale in str(error.value) for scale in scales())


def test_every_scale_sets_the_same_keys_and_carries_its_name():
    def keys(tree, at=""):
        for name, value in tree.items():
            whole = not isinstance(value, dict) or at + name in ("train.budget", "schedule.warmup")
            yield from [at + name] if whole else keys(value, f"{at}{name}.")

    trees = {name: read_source(SCALES / f"{name}.toml").tree for name in scales()}
    assert len(trees) >= 7
    for name, tree in trees.items():
        assert tree["scale"] == name
        of_task = {"data.pairs", "model.init_std"} if tree["data"]["tokenizer"] == "symbols" else set()
        assert set(keys(tree)) - of_task == set(keys(trees["laptop"])), name


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4), ("1_000", 1000), ("0x10", 16), ("false", False), ("[0.9, 0.95]", [0.9, 0.95]),
        ("adamw", "adamw"), ('"3"', "3"), ("data/x y.bin", "data/x y.bin"), ("{a = 1}", {"a": 1}), ("a=b", "a=b"),
    ],
)  # fmt: skip
def test_a_set_value_is_toml_or_a_bare_string(write, text, value):
    source = read_source(write("a.toml", ""), overrides=[f"p.q={text}"])
    assert source.tree == {"p": {"q": value}}
    assert str(source.origins["p.q"]) == "--set"


@pytest.mark.parametrize(
    "text", ["", "=", "a", "a=", "=3", "a b=3", "a..b=3", "[a]=3", "a=[1", 'a="x', "a={b=1", "a\n=3", "a=1\nb=2",
             "a=\udcff", "a=" + "9" * 5000, "a=0x" + "f" * 20, "a=" + "[" * 5000, "a." * 3000 + "b=1", "a=1979-05-27"],
)  # fmt: skip
def test_a_malformed_set_is_located(write, text):
    with pytest.raises(ManifestError) as error:
        read_source(write("a.toml", ""), overrides=[text])
    assert error.value.exit == 78
    assert str(error.value).startswith("--set")


BROKEN = {
    "syntax": (b"a = 1\nb = \n", "a.toml:2:5: "), "duplicate": (b"a = 1\na = 2", "a.toml:2:"),
    "deep list": (b"a = " + b"[" * 30000, "a.toml: nested"), "deep key": (b"a." * 30 + b"b = 1", "a.toml: a.a.a ..."),
    "digits": (b"a = " + b"9" * 5000, "a.toml: an integer"), "hex": (b"\na = 0x" + b"f" * 5000, "a.toml:2: a: "),
    "latin": (b"a = 1\ntitle = '\xe9'", "a.toml:2:10: "), "nul": (b"a = 1\0", "a.toml:1:"),
    "large": (b"#" * (MAX_BYTES + 1), "a.toml: larger"), "date": (b"\n[t]\nd = 1979-05-27", "a.toml:3: t.d: "),
    "missing extends": (b"\nextends = 'gpt3.toml'", "a.toml:2: extends: 'gpt3.toml': no such file"),
    "itself": (b"extends = 'a.toml'", "a.toml:1: extends: "), "number": (b"extends = 3", "a.toml:1: extends: "),
    "enabled": (b"[patch.x]\nenabled = 3", "a.toml:2: patch.x.enabled: expected true or false"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_a_located_fault(write, name):
    text, start = BROKEN[name]
    with pytest.raises(ManifestError) as error:
        read_source(write("a.toml", text))
    assert str(error.value).startswith(start)


def test_a_byte_order_mark_and_crlf_are_read(write):
    source = read_source(write("a.toml", b"\xef\xbb\xbfa = 1\r\nb = 2\r\n"))
    assert source.tree == {"a": 1, "b": 2}
    assert str(source.origins["b"]) == "a.toml:2"


def test_what_is_no_file_is_missing(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none", Path("a\0b")):
        with pytest.raises(MissingError):
            read_source(path)


def test_a_cycle_and_a_long_chain_are_refused(write):
    write("b.toml", "extends = 'a.toml'")
    with pytest.raises(ManifestError, match=r"b\.toml:1: extends: 'a\.toml' extends this file in turn"):
        read_source(write("a.toml", "extends = 'b.toml'"))
    for number in range(30):
        write(f"c{number}.toml", f"extends = 'c{number + 1}.toml'")
    with pytest.raises(ManifestError, match="more than 16 files"):
        read_source(Path("c0.toml"))


def test_a_disabled_patch_is_dropped_and_an_enabled_one_says_no_more_of_it(write):
    off = write("off.toml", "extends = 'v.toml'\n[patch.x]\nenabled = false")
    write("v.toml", "[patch.x]\nrank = 4")
    assert read_source(off).tree["patch"] == {}
    assert not any(key.startswith("patch.x") for key in read_source(off).origins)
    on = read_source(off, overrides=["patch.x.enabled=true"])
    assert on.tree["patch"] == {"x": {"rank": 4}}


def test_options_of_a_dropped_patch_and_drops_of_no_patch_are_refused(write):
    write("v.toml", "[patch.xyz]\nrank = 4")
    off = write("off.toml", "extends = 'v.toml'\n[patch.xyz]\nenabled = false")
    with pytest.raises(ManifestError, match=r"patch\.xyz: off\.toml:3 disables this patch; set enabled"):
        read_source(off, overrides=["patch.xyz.rank=3"])
    with pytest.raises(ManifestError, match=r"no such patch is inherited; did you mean 'xyz'\?"):
        read_source(write("typo.toml", "extends = 'v.toml'\n[patch.xzy]\nenabled = false"))


def test_a_new_kind_drops_the_options_of_the_old_one(write):
    write("low.toml", "[optim]\nbetas = [0.9, 0.99]\nclip = 2.0\n[patch.p]\nkind = 'a'\nx = 1")
    top = write(
        "top.toml", "extends = 'low.toml'\n[optim]\nkind = 'muon'\nmomentum = 0.9\n[patch.p]\nkind = 'b'\ny = 1"
    )
    tree = read_source(top).tree
    assert tree["optim"] == {"kind": "muon", "momentum": 0.9, "clip": 2.0}
    assert tree["patch"] == {"p": {"kind": "b", "y": 1}}
    same = read_source(Path("low.toml"), overrides=["optim.kind=adamw", "patch.p.kind=a"]).tree
    assert same["optim"]["betas"] == [0.9, 0.99]
    assert same["patch"]["p"] == {"kind": "a", "x": 1}


def test_the_catalogue_lists_the_series_in_counting_order():
    entries = {entry.id: entry for entry in catalogue()}
    assert [name for name in entries if name in ("gpt2", "v0", "v1", "v7", "v9")] == ["gpt2", "v0", "v1", "v7", "v9"]
    assert entries["v9"].patches == (("unified_ra", "unified_ra"),)
    assert entries["v0"].same_as == "gpt2"
    assert all(entry.fault is None and entry.title for entry in entries.values())


def test_shipped_ids_are_unique():
    ids = [entry.id for entry in catalogue()]
    assert len(ids) == len(set(ids))


def test_a_broken_shipped_manifest_is_listed_with_its_fault(tmp_path, monkeypatch):
    for module in ("find", "parse"):
        monkeypatch.setattr(f"ratrain.config.{module}.SHIPPED", tmp_path)
    monkeypatch.setattr("ratrain.config.find.SCALES", tmp_path / "scale")
    (tmp_path / "good.toml").write_text("id = 'v1'\ntitle = 'Good'")
    (tmp_path / "bad.toml").write_text("id = ")
    (tmp_path / "lost.toml").write_text("id = 'v3'\nextends = 'none.toml'")
    (tmp_path / "study.toml").write_text("[arms]\nx = 1")
    assert [(entry.id, bool(entry.fault)) for entry in catalogue()] == [("bad", True), ("v1", False), ("v3", True)]
    assert len(shipped()) == 4


def test_the_catalogue_imports_neither_pydantic_nor_torch():
    code = "import sys, ratrain.config.catalogue as c; c.catalogue(); print({'pydantic', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_another_kind_of_pruning_keeps_what_all_kinds_have(write):
    write("low.toml", "[prune]\nkind = 'state'\nscore = 'bitter3'\ntarget = 0.9\nregrow = 0.1")
    write("top.toml", "extends = 'low.toml'\n[prune]\nkind = 'movement'\nregrow = 0.2")
    assert read_source(Path("top.toml")).tree["prune"] == {"kind": "movement", "target": 0.9, "regrow": 0.2}
    overrides = ["prune.score=bitter3", "prune.sparsity=0.5", "prune.kind=state"]  # in whatever order
    write("bare.toml", "id = 'bare'")
    assert read_source(Path("bare.toml"), overrides=overrides).tree["prune"] == {
        "score": "bitter3",
        "sparsity": 0.5,
        "kind": "state",
    }
