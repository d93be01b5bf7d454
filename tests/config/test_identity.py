"""Hashes tell apart what is trained, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ratrain.config.identity import Parent, _recipe, plain, recipe_hash, run_folder, run_hash

MUP = ("model.parametrisation=mup", "model.base={ n_embd = 96, n_head = 3 }")
SAME_RECIPE = [
    "id=other", "title=x", "scale=other", "same_as=x", "origin.step=V1", "seed.init=7", "seed.data=7", "log.every=3",
    "log.trackers=['wandb']", "log.study=pilot", "eval.every=3", "checkpoint.every=3", "checkpoint.keep=5",
    "compile.strict=true",
]  # fmt: skip
OTHER_RECIPE = [
    "model.n_layer=5", "model.dropout=0.1", "data.source=x", "optim.weight_decay=0", "optim.betas=[0.8, 0.95]",
    "optim.kind=muon", "schedule.lr=1e-3", "schedule.warmup.steps=3", "train.batch=16", "train.budget.tokens=3000001",
    "train.precision=bf16", "patch.unified_ra.rank=3", "patch.unified_ra.enabled=false", "patch.kv_prune.keep=1",
    "patch.late.kind=unified_ra", "train.budget.steps=5000", "compile.attention=math",
    "compile.autotune=true", "model.init_std=0.06",
]  # fmt: skip


@pytest.mark.parametrize("override", SAME_RECIPE)
def test_names_seeds_and_cadence_are_no_part_of_the_recipe(resolved, override):
    assert recipe_hash(resolved("v9", override)) == recipe_hash(resolved("v9"))


@pytest.mark.parametrize("override", OTHER_RECIPE)
def test_whatever_is_trained_otherwise_has_another_recipe(resolved, override):
    assert recipe_hash(resolved("v9", override)) != recipe_hash(resolved("v9"))


def test_the_parametrisation_and_its_base_are_part_of_the_recipe_and_the_standard_one_is_not(resolved):
    standard, mup, other = (
        recipe_hash(resolved("v9", *keys))
        for keys in (("model.parametrisation=standard",), MUP, (MUP[0], "model.base={ n_embd = 64, n_head = 2 }"))
    )
    assert standard == recipe_hash(resolved("v9"))
    assert len({standard, mup, other}) == 3


def test_other_recipes_all_differ(resolved):
    assert len({recipe_hash(resolved("v9", override)) for override in OTHER_RECIPE}) == len(OTHER_RECIPE)


def test_the_table_of_safe_keys_is_what_the_recipe_leaves_out(resolved):
    page = Path(__file__).parents[2] / "docs" / "reliability.md"
    table = re.findall(r"^\| `([a-z_.]+)` \|", page.read_text(), re.MULTILINE)
    # these are left out at their defaults: they are younger than the hash
    young = ("compile.autotune=true", "model.init_std=0.06", *MUP)
    pruning = ("prune.kind=magnitude", "prune.target=0.5")
    manifest = resolved("v9", "init.weights=gpt2", f"init.sha256='{'0' * 64}'", *pruning, *young)
    whole, kept = plain(manifest), _recipe(manifest)
    left_out = {name for name in type(manifest).model_fields if name not in kept and name != "seed"}
    for name in kept.keys() & {key for key, value in whole.items() if isinstance(value, dict)}:
        left_out |= {f"{name}.{key}" for key in whole[name] if key not in kept[name]}
    assert set(table) == left_out


BUDGETS = ["train.budget.steps=100", "train.budget.steps=200"]


CONSTANT = ("schedule.kind=constant", "schedule.warmup={ steps = 3 }")
PRUNED = ("prune.kind=magnitude", "prune.target=0.5")


@pytest.mark.parametrize(
    ("schedule", "same"),
    [
        (("schedule.kind=constant", "schedule.warmup={ steps = 3 }"), True),
        (("schedule.kind=constant", "schedule.warmup={ fraction = 0.1 }"), False),
        ((*CONSTANT, *PRUNED, "prune.start={ steps = 3 }", "prune.end={ steps = 9 }"), True),
        ((*CONSTANT, *PRUNED, "prune.start={ steps = 3 }"), False),
        ((*CONSTANT, "activation={ kind = 'after', after = { steps = 3 } }"), True),
        ((*CONSTANT, "activation={ kind = 'after', after = { fraction = 0.1 } }"), False),
        (("schedule.kind=wsd", "schedule.warmup={ steps = 3 }"), False),
        ((), False),
    ],
)
def test_the_budget_is_trained_only_where_a_step_depends_on_it(resolved, schedule, same):
    one, other = (recipe_hash(resolved("v9", *schedule, budget)) for budget in BUDGETS)
    assert (one == other) is same


def test_a_branch_is_another_run_in_another_folder(resolved):
    manifest, parents = resolved("v9"), [None, Parent("a" * 64, 10), Parent("a" * 64, 20), Parent("b" * 64, 10)]
    assert len({run_hash(manifest, parent) for parent in parents}) == 4
    assert run_folder(manifest, parents[1]) == f"{run_folder(manifest)}-from-aaaaaaaa-10"


def test_the_recipe_is_a_sha256_and_v0_is_the_base(resolved):
    assert re.fullmatch("[0-9a-f]{64}", recipe_hash(resolved("v0")))
    assert recipe_hash(resolved("v0")) == recipe_hash(resolved("gpt2"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("model.mlp_ratio=3", "model.mlp_ratio=3.0"), ("optim.betas=[1, 1]", "optim.betas=[1.0, 1.0]"),
        ("patch.kv_prune.keep=3", "patch.kv_prune.keep=3.0"), ("model.dropout=0", "model.dropout=-0.0"),
    ],
)  # fmt: skip
def test_a_number_hashes_alike_however_it_is_spelt(resolved, one, other):
    assert recipe_hash(resolved("v9", one)) == recipe_hash(resolved("v9", other))


def test_an_explicit_default_hashes_as_the_default(resolved):
    defaults = ["model.norm_eps=1e-5", "patch.unified_ra.gates=head", "patch.unified_ra.kind=unified_ra"]
    assert recipe_hash(resolved("v9", *defaults)) == recipe_hash(resolved("v9"))


def test_pretrained_weights_count_by_what_they_hold(resolved):
    digests = [f"init.sha256='{digit * 64}'" for digit in "01"]
    here, moved = (recipe_hash(resolved("v9", f"init.weights={path}", digests[0])) for path in ("here", "there"))
    other = recipe_hash(resolved("v9", "init.weights=here", digests[1]))
    repacked = recipe_hash(resolved("v9", "init.weights=here", digests[0], "init.repack=reciprocal"))
    assert here == moved
    assert len({here, other, repacked, recipe_hash(resolved("v9"))}) == 4


def test_the_order_of_patches_does_not_matter(resolved):
    one = resolved("v0", "patch.unified_ra.rank=1", "patch.kv_prune.keep=1")
    other = resolved("v0", "patch.kv_prune.keep=1", "patch.unified_ra.rank=1")
    assert recipe_hash(one) == recipe_hash(other)
    assert plain(one) == plain(other)


def test_runs_differ_by_seed(resolved):
    seeds = ["seed.init=1", "seed.init=2", "seed.data=2"]
    assert len({run_hash(resolved("v9", seed)) for seed in seeds}) == 3
    assert run_hash(resolved("v9")) == run_hash(resolved("v9", "seed.init=1", "log.every=3"))


def test_a_run_folder_is_named_by_id_scale_recipe_and_seeds(resolved):
    recipe = recipe_hash(resolved("v9", scale="tiny"))[:8]
    assert run_folder(resolved("v9", scale="tiny")) == f"v9-tiny-{recipe}/s1"
    assert run_folder(resolved("v9", "seed.init=3", "seed.data=3", scale="tiny")) == f"v9-tiny-{recipe}/s3"
    assert run_folder(resolved("v9", "seed.data=3", scale="tiny")) == f"v9-tiny-{recipe}/s1-3"
