"""`ratrain try`: ideas end with a verdict, faulty ones before training; searches keep count of their ideas."""

from __future__ import annotations

import json
import shutil

import pytest

from ratrain.ablation.search import Entry, ledger
from ratrain.ablation.trial import meets, trial_plan
from ratrain.config.find import find_manifest
from ratrain.errors import DataError, ManifestError, MissingError, UsageError
from ratrain.statistics.verdict import judge

QUICK = ("--scale", "tiny", "--set", "compile.scope=off", "--set", "train.budget={ steps = 6 }", "--device", "cpu")
HEAD = """
import torch
from torch import nn

from ratrain.registry import Patch, register


@register("mine")
class Mine(Patch):
    target: str = "{target}"

    def build(self, old, spec):
        return Module(spec, old)


class Module(nn.Module):
    def __init__(self, spec, old):
        super().__init__()
        self.w = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        self.w.fill_(0.8)
        self.s.fill_(1.0)

    def gate(self):
        return (1 + self.s * (self.w - 1))[:, None, None]

    def forward(self, y, v, x):
        {body}
"""
REDRAWN = """
from ratrain.registry import Patch, register


@register("mine")
class Mine(Patch):
    target: str = "blocks.*.attn"

    def build(self, old, spec):
        old.proj.std = 0.5
        return old

    def closed(self):
        return self
"""


@pytest.fixture
def idea(tmp_path):
    """Writes the manifest of an idea with a patch of this body, and returns its path."""

    def idea(body, name="mine", text=None):
        (tmp_path / "patches").mkdir(exist_ok=True)
        patch = (text or HEAD).replace("{target}", "blocks.*.attn.blend").replace("{body}", body)
        (tmp_path / "patches" / "mine.py").write_text(patch)
        file = tmp_path / f"{name}.toml"
        file.write_text(f'id = "{name}"\nextends = "gpt2.toml"\n\n[patch.mine]\n')
        return file

    return idea


@pytest.fixture
def attempt(ratrain, tmp_path):
    """Runs `ratrain try` and returns its exit code, its JSON object and stderr."""

    def attempt(*words):
        code, out, err = ratrain("try", *words, *QUICK, "--out", tmp_path / "runs")
        return code, json.loads(out) if out else None, err

    return attempt


def test_an_idea_ends_with_one_object_and_a_page(attempt, idea):
    code, told, err = attempt(idea("return y * self.gate()"), "--delta", "50")
    assert code == 0
    assert (told["idea"], told["verdict"], told["seeds"], told["delta"]) == ("mine", "equivalent", 3, 50.0)
    assert told["interval"][0] < told["effect"] < told["interval"][1]
    assert told["alpha"] == 0.025
    assert told["ended"] == "every arm has its verdict"
    with open(told["report"]) as page:
        assert "mine" in page.read()
    assert "look after 3 seeds" in err
    again = attempt(idea("return y * self.gate()"), "--delta", "50", "--require", "better")
    assert (again[0], again[1]) == (1, told)
    assert attempt(idea("return y * self.gate()"), "--delta", "50", "--require", "not-worse")[0] == 0


BUGS = {
    "a leak in eval mode": (
        "return y * self.gate() if self.training else y * self.gate() + v.mean(2, keepdim=True)",
        "does not hold: ",
    ),
    "a cache that disagrees": (
        "return y + self.s * self.w[:, None, None] * torch.cat([v[:, :, :1] * 0, v[:, :, :-1]], dim=2)",
        "cached decoding equals the full forward",
    ),
    "nothing": ("return y + 0 * self.gate()", "every parameter gets a gradient"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_broken_mechanism_is_refused_before_it_trains(attempt, idea, tmp_path, bug):
    code, told, err = attempt(idea(BUGS[bug][0]))
    assert code == 78
    assert told["verdict"] == "refused"
    assert any(BUGS[bug][1] in fault for fault in told["faults"])
    assert BUGS[bug][1] in err
    assert not list((tmp_path / "runs").glob("*/state.json"))
    assert not list((tmp_path / "runs").glob("studies/*.jsonl"))


def test_other_initial_values_are_refused(attempt, idea, tmp_path):
    code, told, _ = attempt(idea("", text=REDRAWN))
    assert code == 78
    assert any("begins with other values than v0" in fault for fault in told["faults"])
    assert [file.name for file in (tmp_path / "runs" / "studies").iterdir() if file.suffix != ".lock"] == []


def test_a_twin_is_refused(attempt, idea):
    code, told, _ = attempt(idea("return y * self.gate()"), idea("return y * self.gate()", name="again"))
    assert code == 78
    assert any("again: trains the same as mine" in fault for fault in told["faults"])
    code, told, _ = attempt("v0", "v9")
    assert code == 78
    assert any("v0: is the baseline itself" in fault for fault in told["faults"])


def test_the_shares_of_a_search_add_up_to_alpha(tmp_path):
    with ledger(tmp_path / "studies", "abcdef123") as book:
        book.add(book.next("one", 1, after=None))
        for at in range(99):
            book.add(book.next(f"{at}", 1, after="one" if at == 0 else f"{at - 1}"))
    with ledger(tmp_path / "studies", "abcdef123") as book:
        assert [entry.before for entry in book.entries] == list(range(100))
        assert book.entries[0].share == 0.5
        assert book.entries[-1].share == pytest.approx(1 / (100 * 101))
        assert sum(entry.share for entry in book.entries) == pytest.approx(1 - 1 / 101)
        assert book.next("7", 1, after="98") == book.entries[8]  # the same trial again
        assert book.next("fork", 3, after="one") == Entry("fork", "one", 100, 3)
        assert book.next("other", 2, after=None).share == pytest.approx(1 - 1 / 3)


def test_a_search_may_begin_with_a_study(ablate, study, tmp_path):
    ablate(study(), "--only", "v9")
    studies = tmp_path / "runs" / "studies"
    recipe = trial_plan(["v1"], scale="tiny", overrides=["compile.scope=off", "train.budget.steps=6"]).base.recipe
    other = trial_plan(["v1"], scale="tiny").base.recipe
    with ledger(studies, other) as book, pytest.raises(MissingError, match="its baseline, v0, is another one"):
        book.next("mine", 1, after="two-tiny")
    (base,) = {arm["recipe"] for arm in _planned(studies)["arms"] if arm["role"] == "base"}
    with ledger(studies, base) as book:
        assert book.next("mine", 2, after="two-tiny") == Entry("mine", "two-tiny", 3, 2)  # v9 and two kept fractions
        with pytest.raises(MissingError, match="the study has not begun"):
            book.next("mine", 1, after="tow-tiny")
    assert recipe != other


def _planned(studies):
    return json.loads((studies / "two-tiny" / "events.jsonl").read_text().splitlines()[0])


def test_a_trial_keeps_its_place_without_the_ledger(attempt, idea, tmp_path):
    first = attempt(idea("return y * self.gate()"), "--delta", "50")[1]
    second = attempt("v1", "--delta", "50", "--after", first["search"])[1]
    assert (second["ideas_before"], second["alpha"]) == (1, pytest.approx(0.05 / 6))
    (file,) = (tmp_path / "runs" / "studies").glob("ledger-*.jsonl")
    before = file.read_text()
    file.unlink()
    assert attempt("v1", "--delta", "50")[1] == second
    assert file.read_text() == before.splitlines(keepends=True)[1]
    with ledger(file.parent, file.stem.removeprefix("ledger-")) as book:
        book.add(Entry("other", "other", 0, 1))
        with pytest.raises(UsageError, match="is on record as idea 2 of the search of try-mine"):
            book.next(second["report"].split("/")[-2], 1, after="other")


def test_a_changed_idea_is_another_trial_and_a_larger_budget_the_same(idea):
    first = trial_plan([str(idea("return y * self.gate()"))], scale="tiny")
    assert trial_plan([str(idea("return y * self.gate()"))], scale="tiny", budget="3h").name == first.name
    recoded = idea("return y * self.gate() * 1")
    assert trial_plan([str(recoded)], scale="tiny", patches=[recoded.parent / "patches"]).name != first.name
    changed = idea("return y * self.gate()")
    changed.write_text(changed.read_text() + "\n[optim]\nclip = 0.5\n")
    assert trial_plan([str(changed)], scale="tiny").name != first.name


def test_the_runs_of_a_changed_idea_are_its_own(attempt, idea, tmp_path):
    first = attempt(idea("return y * self.gate()"), "--delta", "50")[1]
    code, changed, _ = attempt(idea("return y * self.gate() ** 2"), "--delta", "50", "--after", first["search"])
    assert (code, changed["ideas_before"]) == (0, 1)
    assert changed["effect"] != first["effect"]
    assert len(list((tmp_path / "runs").glob("mine-*"))) == 2
    assert len(list((tmp_path / "runs").glob("v0-*"))) == 3  # with the ruler's budgets
    assert attempt(idea("return y * self.gate()"), "--delta", "50")[1] == first


def test_the_baseline_by_another_path_is_refused(tmp_path):
    (tmp_path / "mine.toml").symlink_to(find_manifest("v0"))
    with pytest.raises(ManifestError, match="is the baseline itself"):
        trial_plan([str(tmp_path / "mine.toml")], scale="tiny")


def test_unlike_patches_of_one_name_are_refused(idea, tmp_path):
    one = idea("return y * self.gate()")
    (tmp_path / "other").mkdir()
    shutil.copytree(one.parent / "patches", tmp_path / "other" / "patches")
    two = tmp_path / "other" / "two.toml"
    two.write_text(one.read_text().replace('"mine"', '"two"') + "[optim]\nclip = 0.5\n")
    assert trial_plan([str(one), str(two)], scale="tiny").of_role("arm")
    patch = tmp_path / "other" / "patches" / "mine.py"
    patch.write_text(patch.read_text() + "\n")
    with pytest.raises(ManifestError, match="have one name; rename one"):
        trial_plan([str(one), str(two)], scale="tiny")


def test_a_search_goes_by_the_name_of_its_study(tmp_path):
    with ledger(tmp_path / "studies", "abcdef123") as book:
        book.add(book.next("one", 1, after=None))
        for after in ("one", "one/", "./one", str(tmp_path / "studies" / "one")):
            assert book.next("two", 1, after=after) == Entry("two", "one", 1, 1)
        with pytest.raises(UsageError, match="--after: is empty"):
            book.next("two", 1, after="")


def test_a_trial_of_another_baseline_begins_no_search(attempt, tmp_path):
    first = attempt("v9", "--delta", "50")[1]
    studies = tmp_path / "runs" / "studies"
    with ledger(studies, "abcdef123") as book, pytest.raises(MissingError, match="its baseline, v0, is another one"):
        book.next("two", 1, after=first["search"])


@pytest.mark.parametrize("line", [b"{}", b'{"study": "a", "search": "a", "before": -1, "ideas": 1}', b"\xff",
                                  b'{"study": "a", "search": "a", "before": "x", "ideas": 1}'])  # fmt: skip
def test_a_spoilt_ledger_is_a_data_error(tmp_path, line):
    (tmp_path / "ledger-abcdef12.jsonl").write_bytes(line + b"\n")
    with pytest.raises(DataError, match="did not write"), ledger(tmp_path, "abcdef123"):
        pass


def test_values_that_make_no_sense_are_usage_errors():
    for ideas, options in (([], {}), (["v9"], {"delta": -1.0}), (["v9"], {"budget": "soon"})):
        with pytest.raises(UsageError):
            trial_plan(ideas, scale="tiny", **options)


def test_not_worse_is_better_or_surely_no_worse_than_delta():
    base = [4.0, 4.1, 3.9, 4.05]
    losses = {"v0": base, "a": [x + 0.001 + e for x, e in zip(base, (1e-4, -1e-4, 2e-4, 0.0), strict=True)]}
    verdict = judge(losses, "v0", planned=4)["a"]
    assert verdict.word == "worse"
    assert meets(verdict, "not-worse", 0.01)
    assert not meets(verdict, "not-worse", 0.0005)
    assert not meets(verdict, "better", 0.01)
    assert not meets(verdict, "equivalent", 0.01)


def test_wrong_options_are_told(ratrain):
    for words, told in (
        (("--budget", "soon"), "'soon' is no budget"),
        (("--delta", "0"), "expected a number above 0"),
        (("--require", "best"), "invalid choice"),
    ):
        code, _, err = ratrain("try", "v9", *words)
        assert code == 2
        assert told in err
    assert ratrain("try", "v99")[0] == 66
