"""An ablation manifest says which runs there are, and what is wrong with it is said before any."""

from __future__ import annotations

import pytest

from ratrain.ablation.manifest import find_ablation
from ratrain.ablation.plan import make_plan
from ratrain.config.find import ablations, shipped
from ratrain.config.read import read_source
from ratrain.config.resolve import resolve
from ratrain.errors import ManifestError, MissingError, UsageError
from ratrain.registry import optim_kinds, patch_kinds

HEAD = 'id = "x"\nscale = "tiny"\n'


def manifest_of(source):
    return resolve(source, patches=patch_kinds(), optimizers=optim_kinds())


def test_the_baseline_comes_first_and_a_grid_makes_an_arm_of_every_point(study):
    plan = make_plan(study())
    assert [arm.name for arm in plan.arms] == ["v0", "v9", "kept keep=0.5", "kept keep=0.25"]
    assert [arm.point for arm in plan.arms] == [{}, {}, {"patch.kv_prune.keep": 0.5}, {"patch.kv_prune.keep": 0.25}]
    assert [arm.manifest.patch["kv_prune"].keep for arm in plan.arms[2:]] == [0.5, 0.25]


def test_what_is_set_for_all_holds_in_every_arm(study):
    assert {arm.manifest.train.budget.steps for arm in make_plan(study()).arms} == {6}


def test_a_run_is_the_one_that_the_command_line_would_make(study):
    last = list(make_plan(study()).tasks())[-1]
    by_hand = ["compile.scope=off", "train.budget.steps=6", "log.every=2", "patch.kv_prune.keep=0.25"]
    source = read_source(last.source.files[-1], scale="tiny", overrides=[*by_hand, "seed.init=2", "seed.data=2"])
    assert manifest_of(last.source) == manifest_of(source)
    assert last.folder.startswith("v19-tiny-")
    assert last.folder.endswith("/s2")


def test_runs_come_seed_by_seed(study):
    assert [task.init for task in make_plan(study()).tasks()] == [1, 1, 1, 1, 2, 2, 2, 2]


def test_a_pattern_takes_every_variant_that_fits_and_the_baseline_once(study):
    plan = make_plan(study(HEAD + 'arms = ["v?"]\n'))
    assert [arm.name for arm in plan.arms] == [f"v{n}" for n in range(10)]


def test_the_command_line_wins(study):
    plan = make_plan(study(), overrides=["train.budget.steps=4"], seeds=[(7, 7)], only=["kept*"])
    assert [arm.name for arm in plan.arms] == ["v0", "kept keep=0.5", "kept keep=0.25"]
    assert plan.seeds == ((7, 7),)
    assert {arm.manifest.train.budget.steps for arm in plan.arms} == {4}


def test_the_name_of_a_study_tells_its_arms_and_seeds_and_nothing_else(study):
    name = make_plan(study()).name
    assert name.startswith("two-tiny-")
    assert make_plan(study(), overrides=["log.every=3"]).name == name
    assert make_plan(study(), seeds=[(1, 1)]).name != name
    assert make_plan(study(), only=["v9"]).name != name


def faults(file):
    with pytest.raises(ManifestError) as raised:
        make_plan(file)
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("arms = []\n", "nothing to compare"),
        ('arms = ["v99"]\n', "study.toml:3: arms: v99: no such manifest"),
        ('arms = ["w*"]\n', "study.toml:3: arms: no variant's id fits 'w*'"),
        ('base = "nothing"\narms = ["v9"]\n', "study.toml:3: base: nothing: no such manifest"),
        ('arms = ["v9"]\nseed.init = [1, 1]\n', "study.toml:4: seed: a seed is repeated"),
        ('arms = ["v9"]\nseed = { init = [1, 2], data = [3] }\n', "init has 2 seeds and data 1"),
        ('arms = ["v9"]\nseeds = [1]\n', "study.toml:4: seeds: unknown key; did you mean 'seed'?"),
        ('arms = ["v9"]\nset.train.bach = 4\n', "study.toml:4: train.bach: unknown key; did you mean 'batch'?"),
        ('[arm.a]\nmanifest = "v19"\nset.patch.kv_prune.keep = 2.5\n', "study.toml:5: patch.kv_prune.keep"),
        ('[arm.a]\nmanifest = "v19"\ngrid.patch.kv_prune.keep = 0.5\n', "study.toml:5: grid.patch.kv_prune.keep: exp"),
        ('[arm.a]\nmanifest = "v9"\nset.model.block_size = 16\n', "model.block_size is 16 here and 32 in v0"),
        ('[arm.a]\nmanifest = "v0"\n', "study.toml: a: trains exactly what v0 trains"),
        ('arms = ["v9"]\n[arm.v9]\nmanifest = "v9"\nset.optim.clip = 2.0\n', "v9: two arms of this name"),
        ('arms = ["v9"]\n[model]\nn_layer = 2\n', "this is the manifest of a variant"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(study, text, told):
    assert told in faults(study(HEAD + text))


def test_the_faults_of_all_arms_are_told_at_once(study):
    text = HEAD + '[arm.a]\nmanifest = "v9"\nset.optim.clap = 1\n[arm.b]\nmanifest = "v9"\nset.optim.clop = 1\n'
    assert "2 faults" in faults(study(text))


def test_an_arm_that_is_not_there_cannot_be_asked_for(study):
    with pytest.raises(UsageError, match="--only v8: no such arm; the arms are v0, v9"):
        make_plan(study(), only=["v8"])


def test_an_ablation_manifest_is_found_by_name_and_is_no_variant():
    names = ("ablation_kv", "ablation_kv.toml", "manifests/ablation_kv.toml")
    assert len({find_ablation(name).resolve() for name in names}) == 1
    assert not {*ablations()} & {*shipped()}
    with pytest.raises(MissingError, match="did you mean 'ablation_kv'"):
        find_ablation("ablation_kw")


@pytest.mark.parametrize("file", ablations(), ids=lambda file: file.stem)
def test_every_shipped_ablation_has_a_plan(file):
    assert len(make_plan(file).arms) > 1
    assert len(make_plan(file, scale="tiny").arms) > 1
