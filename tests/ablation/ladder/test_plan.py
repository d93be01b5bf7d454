"""A ladder's file says which studies there are; what is wrong with it is told before any."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from ratrain.ablation.ladder.climb import climb
from ratrain.ablation.ladder.manifest import find_ladder
from ratrain.ablation.ladder.plan import make_ladder
from ratrain.ablation.ladder.record import planned_ladder, read_ladder_record, settle_ladder
from ratrain.ablation.ladder.sizes import Sizes
from ratrain.ablation.preflight import preflight
from ratrain.config.find import ladders
from ratrain.errors import Exit, ManifestError, MissingError, UsageError


def test_a_rung_is_a_study_of_the_same_arms_at_its_own_size(ladder):
    plan = make_ladder(ladder())
    names = [[arm.name for arm in rung.plan.arms] for rung in plan.rungs]
    assert names == [["v0", "v9", "more", "v0 x0.7", "v0 x1.4"]] * 4
    assert [rung.plan.name for rung in plan.rungs] == [f"steps-rung{number}" for number in (1, 2, 3, 4)]
    assert [len(rung.plan.seeds) for rung in plan.rungs] == [4, 3, 3, 3]
    for rung, tokens in zip(plan.rungs, (128, 320, 1000, 2600), strict=True):
        assert abs(rung.tokens - tokens) <= 32  # half a step of 4 sequences of 16 tokens
        assert rung.spec.n_embd // rung.spec.n_head == 16  # as the scale has it
        assert {arm.manifest.model for arm in rung.plan.arms} == {rung.spec}


def test_parameters_are_near_those_that_the_rule_names(ladder):
    for rung, wanted in zip(make_ladder(ladder()).rungs, (36_000, 75_000, 150_000, 300_000), strict=True):
        wide = 16 / rung.spec.n_embd  # a head more or less
        assert abs(math.log(rung.parameters / wanted)) <= max(0.1, wide)


def test_tokens_follow_parameters(ladder):
    text = ladder().read_text().replace("tokens = [128, 320, 1000, 2600]", "tokens_per_param = 0.02")
    text = text.replace("300_000", "600_000")
    for rung in make_ladder(ladder(text)).rungs:
        assert rung.tokens == pytest.approx(0.02 * rung.parameters, abs=32)


def test_a_planted_arm_has_its_own_budget_at_every_rung(ladder):
    for rung, factor in zip(make_ladder(ladder()).rungs, (2.0, 1.8, 1.5, 1.0), strict=True):
        more = next(arm for arm in rung.plan.arms if arm.name == "more")
        assert more.tokens is not None
        assert abs(more.tokens - factor * rung.tokens) <= 32 * (factor != 1)


def test_rungs_can_be_scales(ladder):
    text = 'id = "x"\narms = ["v9"]\nrungs = { scales = ["tiny", "study", "laptop", "gpt2_124m"] }\n'
    plan = make_ladder(ladder(text))
    assert [rung.spec.n_embd for rung in plan.rungs] == [32, 128, 192, 768]
    assert plan.rungs[1].tokens == pytest.approx(150_000, abs=512)


def test_a_shape_has_the_parameters_of_its_polynomial():
    sizes = Sizes.of(lambda layers, width: 7 + 100 * width + layers * (13 * width + 12 * width**2), 16)
    assert sizes.parameters(3, 80) == pytest.approx(7 + 8000 + 3 * (13 * 80 + 12 * 6400))
    assert sizes.width(sizes.parameters(5, 48), 5) == pytest.approx(48)
    assert sizes.shape(sizes.parameters(6, 192), head_dim=16, aspect=32).n_embd == 192
    assert sizes.shape(1.0, head_dim=16, aspect=32, n_layer=2).n_embd == 16  # none is smaller


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[36_000, 75_000, 150_000, 300_000]", "[36_000, 75_000, 300_000]", "there are 3 rungs; a trend needs 4"),
        ("[128, 320, 1000, 2600]", "[128, 320, 1000]", "tokens has 3 values for 4 rungs"),
        ("[4, 3, 3, 3]", "[4, 3, 3, 2]", "seeds is 2 at a rung; expected 3 or more"),
        ("[4, 3, 3, 3]", "[4, 3, 3, 3]\naspect = 8.0\nlayers = [1, 1, 2, 2]", "expected aspect or layers, not both"),
        ("[2.0, 1.8, 1.5, 1.0]", "[2.0, 1.8]", "arm.more.tokens has 2 values for 4 rungs"),
        ("[36_000, 75_000, 150_000, 300_000]", "[75_000, 36_000, 150_000, 300_000]", "not in rising order"),
        ("[128, 320, 1000, 2600]", "[128, 320, 300, 350]", "decades; expected 2 or more"),
        ("[128, 320, 1000, 2600]", "[2000, 64, 1000, 4000]", "each above the one before"),
        ('arms = ["v9"]', 'arms = ["v9"]\nruler = [0.5]', "ruler needs two budgets beside 1"),
        ('arms = ["v9"]', 'arms = ["v9"]\nruler = [1.4, 2.0]', "one below and one above"),
        ('arms = ["v9"]', 'arms = ["v9"]\nverdict.stop = true', "expected no stop"),
        ('arms = ["v9"]', 'arms = ["v9"]\nbudget = "5m"', "budget limits seeds as needed"),
        ("seeds = [4, 3, 3, 3]", 'budgets = ["1m", "1m", "1m", "1m"]', "rungs.budgets limit seeds as needed"),
        ('arms = ["v9"]', 'arms = ["v9"]\nbase = "v00"', "base: v00: no such manifest"),
        ('arms = ["v9"]', 'arms = ["v99"]', "v99"),
        ("params =", "parms =", "parms"),
    ],
)
def test_a_faulty_ladder_is_refused_with_its_place(ladder, old, new, message):
    text = ladder().read_text()
    assert old in text
    with pytest.raises(ManifestError) as refused:
        make_ladder(ladder(text.replace(old, new)))
    assert message in str(refused.value)
    assert "ladder.toml" in str(refused.value)


def test_a_ladder_needs_an_arm_and_runs_the_ruler_with_some_of_them(ladder):
    with pytest.raises(ManifestError, match="no arm beside the baseline"):
        make_ladder(ladder(ladder().read_text().partition("[arm.more]")[0].replace('["v9"]', '["v0"]')))
    plan = make_ladder(ladder(), only=["v9"])
    assert {rung.plan.asked for rung in plan.rungs} == {frozenset({"v0", "v9", "v0 x0.7", "v0 x1.4"})}


def test_seeds_that_do_not_fit_are_refused(ladder):
    tune = "tune = { grid = { schedule.lr = [1e-3] }, seed = { init = [4] } }"  # the first rung has four seeds
    tuned = ladder().read_text().replace('arms = ["v9"]', f'arms = ["v9"]\n{tune}')
    with pytest.raises(ManifestError, match=r"rungs: tune.seed and seed share"):
        make_ladder(ladder(tuned))
    with pytest.raises(UsageError, match=r"--seeds: tune.seed and seed share"):
        make_ladder(ladder(tuned), seeds=[(4, 4), (5, 5), (6, 6)])


def test_only_a_twin_of_the_baseline_at_other_budgets_is_planted(ladder):
    assert planned_ladder(make_ladder(ladder())).planted == ("more",)
    for other in ('manifest = "v19"', 'manifest = "aa_order"\nset.schedule.lr = 0.5'):
        text = ladder().read_text().replace('manifest = "aa_order"', other)
        assert planned_ladder(make_ladder(ladder(text))).planted == ()


def test_budgets_of_the_ruler_that_are_the_same_in_whole_steps_are_refused(ladder):
    text = ladder().read_text().replace('arms = ["v9"]', 'arms = ["v9"]\nruler = [0.9, 1.1]')
    with pytest.raises(ManifestError, match="ruler: rung 1 has budgets of 128"):
        make_ladder(ladder(text))


def test_a_study_is_no_ladder_and_sizes_are_the_rungs(ladder):
    with pytest.raises(ManifestError, match="no rungs; a study is run with --ablate"):
        make_ladder(ladder('id = "x"\narms = ["v9"]\n'))
    for text in ("model.n_embd=64", "model={n_embd=64}", "train.budget={steps=3}", 'scale="study"'):
        with pytest.raises(UsageError, match="the rungs set it"):
            make_ladder(ladder(), overrides=[text])
    with pytest.raises(MissingError, match="did you mean 'ladder_tiny'"):
        find_ladder("ladder_tiy")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("set.model.n_layer = 3", "set.model.n_layer"),
        ("set.train.budget.steps = 3", "set.train.budget"),
        ("set.train.batch = 8", "set.train.batch"),
        ('set.scale = "study"', "set.scale"),
        ('arm.x = { manifest = "v19", set.model.n_embd = 64 }', "arm.x.set.model.n_embd"),
    ],
)
def test_what_the_rungs_would_overwrite_is_refused(ladder, line, key):
    text = ladder().read_text().replace("\n[rungs]", f"{line}\n\n[rungs]\nbatch = [4, 4, 4, 4]")
    with pytest.raises(ManifestError, match=f"{key}.*the rungs set it"):
        make_ladder(ladder(text))


def test_the_budget_of_an_arm_is_its_tokens_alone(ladder):
    text = 'id = "x"\narms = ["v9"]\narm.y = { manifest = "v19", set.train.budget.steps = 9 }\n'
    text += 'rungs = { scales = ["tiny", "study", "laptop", "gpt2_124m"] }\n'
    with pytest.raises(ManifestError, match=r"arm\.y\.set\.train\.budget.*expected tokens of the arm"):
        make_ladder(ladder(text))


def test_learning_rates_are_tuned_only_if_the_grid_has_them(ladder):
    for key, rates in (("schedule.lr", "tuned"), ("optim.weight_decay", "the same")):
        tune = f"tune = {{ grid = {{ {key} = [1e-1, 2e-1] }}, seed = {{ init = [11, 12, 13] }} }}"
        plan = make_ladder(ladder(ladder().read_text().replace("set.log.every", f"{tune}\nset.log.every")))
        assert plan.rates == rates


def test_a_fresh_ladder_moves_all_rungs_aside_before_any_runs(ladder, tmp_path):
    plan, seen = make_ladder(ladder()), []
    settle_ladder(plan, tmp_path)
    for rung in plan.rungs:
        (tmp_path / "studies" / rung.plan.name).mkdir(parents=True)
        (tmp_path / "studies" / rung.plan.name / "old").touch()

    def run(rung):
        seen.append(any((tmp_path / "studies" / other.plan.name).exists() for other in plan.rungs))
        return SimpleNamespace(exit=Exit.PREEMPTED)

    found = climb(plan, tmp_path, run, lambda _: None, fresh=True)
    assert seen == [False]  # and a stopped rung ends the climb
    assert found.exit == Exit.PREEMPTED
    assert len(list((tmp_path / "studies").rglob("old"))) == 4


def test_the_folder_of_runs_can_be_moved(ladder, tmp_path):
    record = settle_ladder(make_ladder(ladder()), tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = read_ladder_record(tmp_path / "there" / "ladders" / "steps")
    assert moved.plan == record.plan
    assert moved.study(moved.plan.rungs[0]) == tmp_path / "there" / "studies" / "steps-rung1"


def test_another_plan_is_refused_once_one_is_on_record(ladder, tmp_path):
    plan = make_ladder(ladder())
    record = settle_ladder(plan, tmp_path)
    assert record.plan == planned_ladder(plan)
    assert settle_ladder(plan, tmp_path) == record  # read back from the file
    text = ladder().read_text().replace("[128, 320, 1000, 2600]", "[128, 320, 1100, 2600]")
    with pytest.raises(ManifestError, match="another plan on record: rung 3 differs in tokens, flops"):
        settle_ladder(make_ladder(ladder(text)), tmp_path)


@pytest.mark.parametrize("file", ladders(), ids=lambda file: file.stem)
def test_every_shipped_ladder_can_be_planned(file):
    plan = make_ladder(file)
    assert plan.ladder.id == file.stem
    assert plan.rates.startswith(("transferred", "tuned"))


def test_the_first_check_takes_arms_whose_heads_are_those_of_the_base(ladder):
    """Differential attention is refused at other widths of a head than the base's; the check has heads of its own."""
    text = ladder().read_text().replace('"v9"', '"differential_attention"').partition("[arm.more]")[0]
    grown = 'set.model.parametrisation = "mup"\nset.model.base = { n_head = 1, n_embd = 16 }\nset.compile'
    assert preflight(make_ladder(ladder(text.replace("set.compile", grown))).rungs[0].plan)
