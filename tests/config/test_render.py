"""A resolved manifest is itself a manifest: what is written reads back equal."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratrain.config.identity import recipe_hash, run_hash
from ratrain.config.read import find_manifest, read_source
from ratrain.config.render import diff, json_schema, render
from ratrain.config.resolve import resolve
from ratrain.config.schema import Manifest

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FINITE = st.floats(0, 1e300, exclude_min=True)


@st.composite
def trees(draw):
    """Valid manifests as plain trees, with odd names, odd numbers and any mix of kinds."""
    n_head, micro = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    optim = draw(st.sampled_from([{}, {"betas": [0.5, 1]}, {"kind": "muon", "momentum": 1}, {"eps": 3e-20}]))
    patches = st.dictionaries(
        TEXT,
        st.one_of(
            st.builds(lambda rank: {"kind": "unified_ra", "rank": rank}, st.integers(1, 2**62)),
            st.builds(
                lambda keep, label, layers: {"kind": "kv_prune", "keep": keep, "label": label, "layers": layers},
                st.one_of(st.integers(0, 9), FINITE), TEXT, st.lists(st.integers(-9, 9), max_size=3),
            ),
        ),
        max_size=3,
    )  # fmt: skip
    return {
        "id": draw(st.from_regex(r"[a-z0-9][a-z0-9_.-]*", fullmatch=True)),
        "title": draw(TEXT),
        "origin": draw(st.dictionaries(TEXT, TEXT, max_size=2)),
        "model": {
            "n_layer": 1, "n_head": n_head, "n_embd": n_head * draw(st.integers(1, 9)),
            "block_size": 8, "vocab_size": 2048, "norm_eps": draw(FINITE),
        },
        "optim": optim,
        "schedule": {"lr": draw(FINITE), "warmup": {"fraction": draw(st.floats(0, 0.5))}},
        "train": {
            "batch": micro * draw(st.integers(1, 9)), "micro_batch": micro,
            "budget": draw(st.sampled_from([{"steps": 5}, {"tokens": 10**12}, {"seconds": 3}])),
        },
        "seed": {"init": draw(st.integers(0, 2**62))},
        "patch": draw(patches),
    }  # fmt: skip


def toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json_text(name)} = {toml(child)}" for name, child in value.items()) + "}"
    return json_text(value)


def json_text(value):
    return json.dumps(value).replace("\x7f", "\\u007f") if not isinstance(value, str) else basic(value)


def basic(text):
    return '"' + "".join(f"\\U{ord(char):08x}" for char in text) + '"'


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees())
def test_a_rendered_manifest_resolves_to_an_equal_one_with_equal_hashes(tree, kinds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("render", numbered=True)
    (folder / "given.toml").write_text("\n".join(f"{name} = {toml(value)}" for name, value in tree.items()), "utf-8")
    source = read_source(folder / "given.toml")
    manifest = resolve(source, **kinds)
    assert manifest.title == tree["title"]
    assert set(manifest.patch) == set(tree["patch"])
    (folder / "resolved.toml").write_text(render(manifest, source), "utf-8", newline="\n")
    again = resolve(read_source(folder / "resolved.toml"), **kinds)
    assert again == manifest
    assert (recipe_hash(again), run_hash(again)) == (recipe_hash(manifest), run_hash(manifest))
    assert diff(again, manifest) == []


@pytest.mark.parametrize("name", ["gpt2", "v0", "v9"])
def test_rendering_twice_changes_only_the_origins(name, kinds, tmp_path):
    source = read_source(find_manifest(name), scale="tiny")
    text = render(resolve(source, **kinds), source)
    (tmp_path / "resolved.toml").write_text(text)
    twice = read_source(tmp_path / "resolved.toml")
    assert [line.split("  # ")[0] for line in render(resolve(twice, **kinds), twice).splitlines()] == [
        line.split("  # ")[0] for line in text.splitlines()
    ]


def test_every_key_says_where_it_came_from(kinds):
    source = read_source(find_manifest("v9"), overrides=["train.batch=16"])
    lines = dict(line.split("  # ") for line in render(resolve(source, **kinds), source).splitlines() if " = " in line)
    assert lines["batch = 16"] == "--set"
    assert lines["norm_eps = 1e-05"] == "default"
    assert lines["rank = 2"] == "manifests/unified_ra_v9.toml:7"
    assert lines["n_layer = 4"].startswith("manifests/scale/laptop.toml:")


def test_diff_names_the_keys_that_differ_and_no_other(resolved):
    assert diff(resolved("v9"), resolved("v9")) == []
    assert diff(resolved("v9"), resolved("v9", "patch.unified_ra.rank=3")) == [("patch.unified_ra.rank", 2, 3)]
    found = {key: values for key, *values in diff(resolved("v0"), resolved("v9"))}
    assert found["patch.unified_ra.rank"] == [None, 2]
    assert set(found) == {
        "id",
        "title",
        "same_as",
        *(f"origin.{key}" for key in ("step", "base")),
        *(f"patch.unified_ra.{key}" for key in ("kind", "target", "rank", "gates")),
    }


def test_the_schema_knows_every_key_and_requires_none(kinds):
    schema = json_schema(**kinds)
    assert set(schema["properties"]) == {*Manifest.model_fields, "extends"}
    kinds_of = [table["properties"]["kind"]["const"] for table in schema["properties"]["optim"]["anyOf"]]
    assert kinds_of == ["adamw", "muon"]
    patch = schema["properties"]["patch"]["additionalProperties"]["anyOf"][0]["properties"]
    assert {"kind", "enabled", "target", "activation", "rank", "gates"} == set(patch)
    assert '"required"' not in json.dumps(schema)


def test_the_schema_leads_nowhere_that_is_not_there(kinds):
    schema = json_schema(**kinds)
    text = json.dumps(schema)
    refs = {part.split('"')[0] for part in text.split('"#/$defs/')[1:]}
    assert refs
    assert refs <= set(schema["$defs"])
