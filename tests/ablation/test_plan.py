"""An ablation manifest says which runs there are, and what is wrong with it is said before any."""

from __future__ import annotations

import pytest

from ratrain.ablation.manifest import find_ablation
from ratrain.ablation.plan import make_plan
from ratrain.ablation.record import planned
from ratrain.config.find import ablations, shipped
from ratrain.config.read import read_source
from ratrain.config.resolve import resolve
from ratrain.errors import ManifestError, MissingError, UsageError
from ratrain.registry import optim_kinds, patch_kinds
from ratrain.run.widen import widen

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
    assert [arm.name for arm in plan.of_role("base", "arm")] == [f"v{n}" for n in range(10)]


def test_the_command_line_wins(study):
    plan = make_plan(study(), overrides=["train.budget.steps=4"], seeds=[(7, 7)], only=["kept*"])
    assert plan.asked == {"v0", "kept keep=0.5", "kept keep=0.25"}
    assert {task.arm for task in plan.tasks()} == plan.asked
    assert plan.seeds == ((7, 7),)
    assert {arm.manifest.train.budget.steps for arm in plan.arms} == {4}


def test_the_hash_of_a_plan_tells_what_is_trained_compared_and_claimed_and_nothing_else(study):
    text = study().read_text()

    def digest(more="", **options):
        return planned(make_plan(study(text + more), **options)).hash

    known = digest()
    assert digest(overrides=["log.every=3"]) == digest(only=["v9"]) == known
    assert digest("\n[verdict]\nnoise = 0.1\n") == known  # foretells, and claims nothing
    others = [
        digest(seeds=[(1, 1)]), digest(overrides=["optim.clip=0.5"]), digest("\n[verdict]\nalpha = 0.01\n"),
        digest("\n[metric]\nema = 0.5\n"), digest("\n[arm.more]\nmanifest = 'v8'\n"),
    ]  # fmt: skip
    assert len({known, *others}) == 6


# arms that a study makes by itself


def test_an_arm_that_costs_more_brings_a_baseline_as_wide(study):
    plan = make_plan(study(HEAD + 'arms = ["v4", "v6", "v9", "v10"]\n'))
    (control,) = plan.of_role("control")
    assert {arm.name: arm.control for arm in plan.of_role("arm")} == {
        "v4": control.name, "v6": control.name, "v9": "", "v10": control.name,
    }  # fmt: skip
    for arm in (arm for arm in plan.arms if arm.control):
        ways = [
            widen(arm.manifest, plan.base.manifest, by=by).manifest.model.n_hidden for by in ("parameters", "flops")
        ]
        assert control.manifest.model.n_hidden == max(ways)
    assert not control.manifest.patch
    assert not make_plan(study(HEAD + 'controls = false\narms = ["v10"]\n')).of_role("control")


def test_an_arm_that_is_its_own_control_brings_none(study):
    plan = make_plan(study(HEAD + '[arm.wide]\nmanifest = "v0"\nset.model.mlp_ratio = 6\n'))
    assert [(arm.name, arm.control) for arm in plan.arms] == [("v0", ""), ("wide", "")]


def test_a_ruler_is_the_baseline_at_other_budgets(study):
    plan = make_plan(study(HEAD + 'ruler = [0.5, 1.0, 2.0]\narms = ["v9"]\n'))
    assert {arm.name: arm.manifest.train.budget.steps for arm in plan.of_role("base", "ruler")} == {
        "v0": 100, "v0 x0.5": 50, "v0 x2": 200,
    }  # fmt: skip


def test_arms_of_equal_flops_train_fewer_tokens_and_of_equal_parameters_are_narrower(study):
    text = HEAD + 'match = "{}"\ncontrols = false\narms = ["output_gate", "v9"]\n'
    flops = make_plan(study(text.format("flops")))
    totals = {arm.name: (arm.tokens or 0) * arm.built.train_flops_per_token for arm in flops.arms}
    assert totals["output_gate"] == pytest.approx(totals["v0"], rel=0.01)  # whole steps
    assert flops.arms[1].tokens < flops.base.tokens
    wide, same = (make_plan(study(text.format("parameters"))).arms[n] for n in (1, 2))
    base = flops.base.built.parameters
    assert abs(wide.built.parameters - base) <= 65  # half a hidden channel in each of two layers
    assert same.manifest.model.n_hidden == flops.base.manifest.model.n_hidden
    timed = make_plan(study(text.format("seconds")), costs=lambda name, tasks: {"output_gate": 2.0, "v9": 1.0})
    assert [arm.tokens for arm in timed.arms] == [flops.base.tokens, flops.base.tokens // 2, flops.base.tokens]


def test_every_arm_is_tuned_on_the_same_grid_and_on_seeds_of_its_own(study):
    text = HEAD + 'arms = ["v9"]\n[tune]\ngrid.schedule.lr = [1e-3, 2e-3]\nseed.init = [11, 12]\n'
    plan = make_plan(study(text))
    found = [(arm.of, arm.manifest.schedule.lr, arm.seeds) for arm in plan.of_role("tuning")]
    assert found == [(name, lr, ((11, 11), (12, 12))) for name in ("v0", "v9") for lr in (1e-3, 2e-3)]
    first, second = plan.tuned({"v0": {"schedule.lr": 1e-3}, "v9": {"schedule.lr": 2e-3}})
    assert (first.manifest.schedule.lr, second.manifest.schedule.lr) == (1e-3, 2e-3)
    assert second.seeds == plan.seeds
    with pytest.raises(UsageError, match="a verdict needs others"):
        make_plan(study(text), seeds=[(11, 11)])


def test_an_average_of_weights_is_set_in_every_arm(study):
    plan = make_plan(study(HEAD + 'metric.ema = 0.9\narms = ["v9"]\n'))
    assert {arm.manifest.eval.ema for arm in plan.arms} == {0.9}


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
        ('[arm.a]\nmanifest = "v0"\n', "study.toml: a: trains the same as v0; take one out"),
        ('arms = ["v9"]\n[arm.v9]\nmanifest = "v9"\nset.optim.clip = 2.0\n', "v9: two different arms have this name"),
        ('arms = ["v9"]\n[model]\nn_layer = 2\n', "this is the manifest of a variant"),
        ('arms = ["v9"]\nruler = [0.5]\n', "ruler needs two budgets beside 1"),
        ('arms = ["v9"]\nmetric.last = 20\n', "study.toml:4: metric.last: is 20, but v0 is evaluated 10 times"),
        ('arms = ["v9"]\n[tune]\ngrid.schedule.lr = [1e-3]\nseed.init = [3]\n', "tune.seed and seed share (3, 3)"),
        ('arms = ["v9"]\nmatch = "flops"\nset.train.budget.seconds = 5\n', "study.toml:4: match: 'flops' changes"),
        ('arms = ["v11"]\nset.train.budget.steps = 60\n', "it would be open at step 75, but the budget has 60 steps"),
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


def test_a_scale_that_is_asked_for_wins_over_what_is_set_but_for_what_is_studied(study):
    head = 'id = "x"\nscale = "study"\narms = ["v9"]\ncontrols = false\n'
    text = head + "[set]\ntrain.budget.steps = 6\noptim.weight_decay = 0.5\n"
    own, tiny = make_plan(study(text)).base.manifest, make_plan(study(text), scale="tiny").base.manifest
    assert (own.train.budget.steps, own.optim.weight_decay) == (6, 0.5)
    assert (tiny.train.budget.steps, tiny.optim.weight_decay) == (100, 0.5)


def test_arms_that_say_they_equal_what_equals_a_third_may_stand_beside_each_other(study):
    text = HEAD + 'base = "ratio0_as_run"\narms = ["recip0_as_run", "recip1_as_run"]\n'
    assert [arm.name for arm in make_plan(study(text)).arms] == ["ratio0_as_run", "recip0_as_run", "recip1_as_run"]
