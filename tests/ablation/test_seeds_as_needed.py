"""Seeds as needed: which arms run on, when a study ends, and that its claims hold all the while."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ratrain.ablation.budget import StudyBudget
from ratrain.ablation.conclusion import conclude, judged
from ratrain.ablation.plan import make_plan
from ratrain.ablation.record import Study, planned, read_study
from ratrain.ablation.results import Reached, Row
from ratrain.ablation.running.execute import held, set_aside
from ratrain.ablation.running.seeds_as_needed import Purse, look, next_block
from ratrain.errors import CannotCreateError, DataError

TEXT = """\
id = "needed"
scale = "tiny"
seed = {{ min = 3, max = {most} }}
controls = false
arms = {arms}
verdict.delta = {delta}
set.compile.scope = "off"
set.train.budget = {{ steps = 200 }}
"""
SHORT = TEXT.replace("200", "6")
SD = 0.01  # of a paired difference, nats


@pytest.fixture
def begun(study, tmp_path):
    """The record of a study of so many arms."""

    def begun(arms=("v1", "v9"), most=30, delta=0.5 * SD, budget=""):
        plan = planned(make_plan(study(TEXT.format(arms=list(arms), most=most, delta=delta)), budget=budget or None))
        return Study(tmp_path / "runs" / "studies" / "needed", plan, plan, budgets=((budget, 0),))

    return begun


class Simulated:
    """A study whose runs cost one unit of tokens each and end with simulated losses."""

    def __init__(self, study, effects, rng, budget=math.inf):
        arms = study.plan.of_role("base", "arm")
        self.study = replace(study, plan=_at_one_token(study.plan), now=_at_one_token(study.now))
        noise = rng.standard_normal((len(arms), len(study.plan.seeds))) * SD / math.sqrt(2)
        self.losses = {arm.name: 4.0 + row for arm, row in zip(arms, noise, strict=True)}
        for name, effect in effects.items():
            self.losses[name] = self.losses[name] + effect
        self.purse = Purse(StudyBudget("tokens", budget) if math.isfinite(budget) else None, 0.0)

    def rows(self, block=None):
        found = []
        for arm in self.study.plan.of_role("base", "arm"):
            asked = self.study.seeds_of(arm.name, block)
            runs = tuple(
                _reached(seed, float(loss)) if seed <= asked else Reached(seed, seed, "", "not begun", None, None)
                for seed, loss in enumerate(self.losses[arm.name], 1)
            )
            both = zip(self.losses["v0"][:asked], self.losses[arm.name][:asked], strict=True)
            differences = (float(own - base) for base, own in both)
            found.append(Row(arm, runs, tuple(d for d in differences if math.isfinite(d))))
        return found

    def run(self, lanes=1):
        while block := next_block(self.study, self.rows(), lanes, self.purse):
            arms = [self.study.plan.base, *(arm for arm in self.study.plan.arms if arm.name in block.arms)]
            self.purse.pay({arm.folders[at]: arm for arm in arms for at in range(self.seeds(arm.name), block.seeds)})
            found = look(self.study, self.rows(block), block, self.purse)
            self.study = replace(self.study, looks=(*self.study.looks, found))
        return self

    def seeds(self, arm):
        return self.study.seeds_of(arm) if self.study.looks else 0

    def extend(self, budget):
        budgets = (*self.study.budgets, ("more", len(self.study.looks)))
        self.study, self.purse.budget = replace(self.study, budgets=budgets), StudyBudget("tokens", budget)
        return self

    @property
    def words(self):
        return {verdict.arm: verdict.word for verdict in judged(self.study, self.rows()).verdicts}


def _reached(seed, loss):
    diverged = math.isnan(loss)
    return Reached(seed, seed, "", "diverged" if diverged else "done", None if diverged else loss, None)


def _at_one_token(plan):
    return replace(plan, arms=tuple(replace(arm, tokens=1) for arm in plan.arms))


def test_a_clear_effect_stops_first_and_the_rest_of_the_budget_goes_to_the_others(begun):
    done = Simulated(begun(), {"v9": -20 * SD, "v1": -1.2 * SD}, np.random.default_rng(0)).run()
    assert done.words == {"v9": "better", "v1": "better"}
    assert done.seeds("v9") == 3
    assert 3 < done.seeds("v1") == done.seeds("v0") < 30
    assert done.study.looks[-1].over == "every arm has its verdict"


def test_an_arm_that_no_seeds_can_decide_is_given_up(begun):
    done = Simulated(begun(most=8, delta=0.1 * SD), {}, np.random.default_rng(1)).run()
    assert set(done.words.values()) == {"inconclusive"}
    assert done.study.dropped == {"v1", "v9"}
    assert done.study.looks[-1].over == "more seeds can decide no other arm"
    found = conclude(done.study, done.rows())
    assert found.needs["v9"] is None or found.needs["v9"] > 8


def test_a_budget_ends_the_study_and_an_extension_goes_on(begun):
    study = begun(arms=["v9"], most=40, delta=0.2 * SD, budget="1 tokens")
    first = Simulated(study, {"v9": -1.3 * SD}, np.random.default_rng(6), budget=12).run()
    last = first.study.looks[-1]
    assert (last.seeds, last.spent, last.over) == (6, 12, "the budget is spent")
    assert last.share == pytest.approx(0.8)
    assert first.words == {"v9": "inconclusive"}
    more = first.extend(40).run()
    assert more.words == {"v9": "better"}
    assert 0.8 < more.study.looks[-1].share <= 0.9


@pytest.mark.parametrize(
    ("runs", "lanes", "seeds"), [(2, 2, 1), (3, 2, 2), (2, 8, 4), (22, 2, 1), (5, 4, 3), (3, 1, 1)]
)
def test_blocks_leave_few_devices_idle(begun, runs, lanes, seeds):
    arms = [f"v{n}" for n in range(1, 20)] + ["output_gate", "aa_ulp"]
    simulated = Simulated(begun(arms=arms[: runs - 1], delta=0.2 * SD), {}, np.random.default_rng(0))
    first = next_block(simulated.study, simulated.rows(), lanes, simulated.purse)
    simulated.purse.pay({})
    found = look(simulated.study, simulated.rows(first), first, simulated.purse)
    simulated.study = replace(simulated.study, looks=(replace(found, dropped=()),))
    assert next_block(simulated.study, simulated.rows(), lanes, simulated.purse).seeds == 3 + seeds


@pytest.mark.slow
def test_stopping_dropping_and_extending_raise_no_error_rate(begun):
    study, wrong, studies = begun(arms=["v1", "v2", "v9", "v19"], most=16, delta=1.5 * SD), 0, 80
    rng = np.random.default_rng(3)
    effects = {"v1": 0.0, "v2": 1.5 * SD, "v9": 0.0, "v19": -1.5 * SD}  # the last two are false if called equivalent
    for _ in range(studies):
        words = Simulated(study, effects, rng, budget=60).run(lanes=2).extend(90).run(lanes=2).words
        wrong += words["v1"] in ("better", "worse") or words["v9"] in ("better", "worse")
        wrong += words["v2"] in ("better", "equivalent") or words["v19"] in ("worse", "equivalent")
    assert wrong / studies <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / studies)


def test_the_command_runs_as_many_seeds_as_it_needs(ablate, study, tmp_path):
    text = SHORT.format(most=6, arms=["v9", "aa_ulp"], delta=50.0)
    results, _ = ablate(study(text))
    runs = {arm["arm"]: [run["status"] for run in arm["runs"]] for arm in results["arms"]}
    assert runs == {"v0": ["done"] * 3, "v9": ["done"] * 3, "aa_ulp": ["done"] * 3}
    lines = (tmp_path / "runs" / "studies" / "needed-tiny" / "events.jsonl").read_text().splitlines()
    looks = [event for event in map(json.loads, lines) if event["event"] == "Looked"]
    assert [(event["seeds"], event["over"]) for event in looks] == [(3, "every arm has its verdict")]
    page = (tmp_path / "runs" / "studies" / "needed-tiny" / "report.html").read_text()
    assert "3 arms x 3 to 6 seeds as needed, baseline v0" in page
    assert "every arm has its verdict" in page
    again, err = ablate(study(text))
    assert (again, err) == (results, "")


@pytest.mark.parametrize("left", ["", '{"event": "RunSta'])
def test_a_run_that_was_killed_before_its_first_event_is_begun_again(ablate, study, tmp_path, left):
    text = SHORT.format(most=6, arms=["v9"], delta=50.0)
    whole, _ = ablate(study(text))
    record = tmp_path / "runs" / "studies" / "needed-tiny" / "events.jsonl"
    record.write_text(record.read_text().splitlines(keepends=True)[0])  # killed before the first look
    (folder,) = (tmp_path / "runs").glob("v9-*/s2")
    shutil.rmtree(folder / "checkpoints")
    (folder / "state.json").unlink()
    (folder / "events.jsonl").write_text(left)
    again, _ = ablate(study(text))
    assert again == whole


def test_the_ruler_runs_after_the_last_look(ablate, study, tmp_path):
    ablate(study("ruler = [0.5, 2.0]\n" + SHORT.format(most=6, arms=["v9"], delta=50.0)))
    looked = (tmp_path / "runs" / "studies" / "needed-tiny" / "events.jsonl").stat().st_mtime_ns
    begun = {}
    for folder in (tmp_path / "runs").glob("*/s?"):
        steps = json.loads((folder / "summary.json").read_text())["steps"]
        begun.setdefault(steps, []).append((folder / "manifest.toml").stat().st_mtime_ns)
    assert {steps: len(times) for steps, times in begun.items()} == {3: 3, 6: 6, 12: 3}
    assert max(begun[6]) < looked < min(begun[3] + begun[12])


def test_a_diverged_run_is_not_trained_again(ablate, study, tmp_path):
    text = SHORT.format(most=6, arms=["v9"], delta=50.0)
    ablate(study(text))
    (folder,) = (tmp_path / "runs").glob("v9-*/s2")
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "status": "diverged"}))
    events = (folder / "events.jsonl").read_bytes()
    ablate(study(text.replace("needed", "other")))
    assert (folder / "events.jsonl").read_bytes() == events
    assert json.loads((folder / "state.json").read_text())["status"] == "diverged"


def test_an_extension_does_not_move_the_time_of_the_last_look(ablate, study, tmp_path):
    text = SHORT.format(most=6, arms=["v9"], delta=50.0)
    ablate(study(text), "--budget", "60 s")
    folder = tmp_path / "runs" / "studies" / "needed-tiny"
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    looked = next(event for event in lines if event["event"] == "Looked")
    late = {"schema": 1, "event": "Extended", "time": "2099-01-01T00:00:00Z", "budget": "2m"}
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in (*lines, late)))
    assert time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(read_study(folder).since)) == looked["time"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: [*lines, lines[-1]],
        lambda lines: [lines[0], lines[1].replace('"share": ', '"share": 2')],
        lambda lines: [lines[0], lines[1].replace('"share": ', '"share": "x", "y": ')],
        lambda lines: [*lines, "\udcff"],
    ],
)
def test_a_spoilt_record_is_a_data_error(ablate, study, tmp_path, spoil):
    ablate(study(SHORT.format(most=6, arms=["v9"], delta=50.0)))
    file = tmp_path / "runs" / "studies" / "needed-tiny" / "events.jsonl"
    file.write_text("\n".join(spoil(file.read_text().splitlines())), errors="surrogateescape")
    with pytest.raises(DataError, match="did not write"):
        read_study(file.parent)


def test_a_study_in_work_is_not_set_aside(tmp_path):
    folder = tmp_path / "study"
    with held(folder):
        (folder / "events.jsonl").touch()
        with pytest.raises(CannotCreateError, match="another process works"):
            set_aside(folder)
    assert (folder / "events.jsonl").exists()
    set_aside(folder)
    assert not folder.exists()


def test_more_seeds_than_another_study_trained_are_not_read(ablate, study):
    ablate(study(SHORT.format(most=6, arms=["v9"], delta=50.0).replace("needed", "other")), "--seeds", "1,2,3,4,5")
    results, _ = ablate(study(SHORT.format(most=6, arms=["v9"], delta=50.0)))
    assert [len([run for run in arm["runs"] if run["status"] == "done"]) for arm in results["arms"]] == [3, 3]


@pytest.mark.parametrize(
    ("text", "amount"),
    [("90s", 90), ("30m", 1800), ("1.5 h", 5400), ("4 gpu-h", 14400), ("40 Mtokens", 4e7), ("3 device-min", 180)],
)
def test_budgets_are_read_with_their_unit(text, amount):
    assert StudyBudget.of(text).amount == amount


@pytest.mark.parametrize("text", ["30", "m", "0m", "-3h", "3 weeks", "1e9h", "9" * 320 + "h"])
def test_other_budgets_are_refused(text):
    with pytest.raises(ValueError, match="such as 90s, 30m"):
        StudyBudget.of(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('seed = { min = 3, max = 6 }\nbudget = "soon"', "'soon' is no budget; expected a number and a unit"),
        ("seed = { min = 2, max = 6 }", "seed.min: must be at least 3"),
        ("seed = { min = 4, max = 3 }", "expected min <= max"),
        ("seed = { init = [1, 2], min = 4 }", "expected no min beside init"),
        ("seed = { max = 1_000_000 }", "seed.max: must be at most 1000"),
        ("seed = { max = 6 }\nverdict.stop = true", "with seeds as needed arms stop in any case"),
        ("seed = { init = [1, 2], max = 6 }", "expected either init = [...], or min and max"),
        ('seed.init = [1, 2]\nbudget = "3m"', "expected seed = { min = 3, max = 40 }"),
        ("seed = { max = 6 }\n[tune]\nseed.init = [9]\ngrid.schedule.lr = [0.1]", "tune compares all arms on the same"),
    ],
)
def test_settings_that_do_not_fit_are_refused(ratrain, study, change, words):
    code, _, err = ratrain("--ablate", study(f'id = "bad"\nscale = "tiny"\narms = ["v9"]\n{change}\n'), "--dry-run")
    assert code == 78
    assert words in err


def test_a_budget_without_seeds_as_needed_is_refused(ratrain, study):
    code, _, err = ratrain("--ablate", study(), "--budget", "3m")
    assert code == 2
    assert "--seeds 3..40 takes as many as needed" in err


def test_a_larger_budget_extends_and_a_smaller_one_changes_nothing(ablate, ratrain, study, tmp_path):
    text = SHORT.format(most=6, arms=["v9"], delta=50.0)
    ablate(study(text), "--budget", "60 s")
    for budget in ("1m", "30s", "2m"):
        ablate(study(text), "--budget", budget)
    lines = (tmp_path / "runs" / "studies" / "needed-tiny" / "events.jsonl").read_text().splitlines()
    assert [event["budget"] for event in map(json.loads, lines) if event["event"] == "Extended"] == ["2m"]
    for words in (("--budget", "3 Mtokens"), ()):
        code, _, err = ratrain("--ablate", study(text), *words, "--out", tmp_path / "runs")
        assert code == 2
        assert "was begun with 2m" in err


def test_what_seeds_as_needed_cannot_do_is_refused(ratrain, study):
    text = SHORT.format(most=6, arms=["v9"], delta=50.0)
    code, _, err = ratrain("--ablate", study(text), "--only", "v9")
    assert code == 2
    assert "--only: with seeds as needed" in err
    seconds = text.replace("{ steps = 6 }", "{ seconds = 5 }")
    code, _, err = ratrain("--ablate", study(seconds), "--budget", "3 Mtokens", "--dry-run")
    assert code == 78
    assert "a run's budget is in seconds; expected time, such as 30m" in err


def test_an_arm_whose_runs_all_diverged_is_given_up_at_the_first_look(begun):
    simulated = Simulated(begun(), {"v9": math.nan, "v1": -1.2 * SD}, np.random.default_rng(0))
    done = simulated.run()
    assert "v9" in done.study.looks[0].dropped
    assert done.words == {"v1": "better", "v9": "inconclusive"}


def test_what_a_diverged_run_bars_is_no_hope(begun):
    simulated = Simulated(begun(), {"v9": -20 * SD}, np.random.default_rng(0))
    simulated.losses["v9"][1] = math.nan
    done = simulated.run()
    assert "v9" in done.study.dropped
    assert conclude(done.study, done.rows()).needs["v9"] is None


def test_a_block_is_no_larger_than_what_is_left(begun):
    study = begun(arms=["v9"], most=40, delta=0.2 * SD, budget="1 tokens")
    done = Simulated(study, {"v9": -1.3 * SD}, np.random.default_rng(6), budget=12).run(lanes=8)
    assert done.study.looks[-1].spent <= 12


def test_the_budget_keeps_back_the_price_of_the_ruler(begun):
    study = begun(arms=["v9"], most=40, delta=0.2 * SD, budget="1 tokens")
    done = Simulated(study, {"v9": -1.3 * SD}, np.random.default_rng(6), budget=18)
    half, twice = (replace(done.study.plan.base, tokens=1, folders=("a", "b", "c")) for _ in range(2))
    done.purse.ruler = (half, twice)
    assert done.purse.left == 12
    assert done.run(lanes=8).study.looks[-1].spent == 12


def test_looks_put_their_verdicts_on_record_and_a_change_is_told(begun):
    done = Simulated(begun(), {"v9": -20 * SD, "v1": -1.2 * SD}, np.random.default_rng(0)).run()
    assert done.study.looks[0].words == {"v9": "better"}
    assert not any(text.startswith("changed") for text in conclude(done.study, done.rows()).warnings)
    done.losses["v9"] += 20 * SD
    (told,) = (text for text in conclude(done.study, done.rows()).warnings if text.startswith("changed"))
    assert told.startswith("changed: v9 was better when the study looked after 3 seeds")


def test_runs_that_ended_before_a_kill_are_paid_for():
    purse = Purse(StudyBudget("time", 1000.0), 0.0, lanes=2)
    arm = SimpleNamespace(tokens=10, train_flops_per_token=3, folders=("a",), name="a")
    purse.ran(arm, 60.0, earlier=True)
    purse.pay({"a": arm})
    assert purse.spent == pytest.approx(30.0, abs=1.0)
    assert purse.price([arm]) == pytest.approx(purse.spent)
