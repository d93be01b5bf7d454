"""The report of a study says what the events of its runs say, and a browser shows it without a word."""

import csv
import json
import math
import re
import runpy
import statistics
import sys
from collections import Counter
from dataclasses import asdict, replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ratrain import events
from ratrain.ablation.conclusion import conclude
from ratrain.ablation.record import Cost, Planned, PlannedArm, read_study
from ratrain.ablation.results import rows_of
from ratrain.event_log import encode
from ratrain.report.study.table import HEAD, cells
from ratrain.report.study.write import write_study_report

BROWSER = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "browser.py")))

SEEDS = ((1, 1), (2, 2), (3, 3), (4, 4))
VERDICT = {"delta": 0.01, "alpha": 0.05, "spending": "obrien_fleming", "stop": False}
TOKENS, STEPS, EVERY = 64_000, 40, 10


def planned_arm(name, **facts):
    """A planned arm whose runs are in `<name>-<n>`."""
    seeds = facts.pop("seeds", SEEDS)
    folders = tuple(f"{re.sub('[^a-z0-9]+', '-', name)}/s{init}" for init, _ in seeds)
    usual = {
        "role": "arm", "of": "", "control": "", "point": {}, "recipe": f"recipe of {name}", "id": name.split()[0],
        "same_as": None, "twin": "none", "parameters": 100_000, "train_flops_per_token": 600_000,
        "kv_bytes_per_token": 1024, "tokens": TOKENS,
    }  # fmt: skip
    return PlannedArm(name=name, seeds=seeds, folders=folders, **{**usual, **facts})


def plan_of(*arms, **facts):
    usual = {
        "id": "x", "title": "ideas <b>& more</b>", "file": "manifests/x file.toml", "scale": "tiny", "match": "tokens",
        "metric": {"last": 1, "ema": 0.0}, "verdict": VERDICT, "tune": None, "seeds": SEEDS, "hash": "abc123" * 10,
    }  # fmt: skip
    return Planned(arms=arms, **{**usual, **facts})


class Synthetic:
    """A study in a folder: what is planned and what its runs told, without any training."""

    def __init__(self, out: Path):
        self.out, self.folder = out, out / "studies" / "x-tiny"
        self.folder.mkdir(parents=True)

    def told(self, event, **facts):
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps({"schema": 1, "event": event, "time": "2026-01-01T00:00:00Z", **facts}) + "\n")

    def plan(self, *arms, **facts):
        checked = ["shared weights begin alike", "validation windows are the same"]
        self.told("Planned", **asdict(plan_of(*arms, **facts)), checked=checked)

    def run(self, arm, seed=1, *, effect=0.0, steps=STEPS, status="done", evaluations=4, probes=False, manifest=True):
        """The run of one arm and seed: its own noise on what the seed and the arm make of the loss."""
        at = [init for init, _ in arm.seeds].index(seed)
        folder = self.out / arm.folders[at]
        folder.mkdir(parents=True)
        draw = np.random.default_rng([seed, *arm.name.encode()])
        told = list(_told(arm, folder, seed, effect + draw.normal(0, 0.002), steps, status, evaluations, probes, draw))
        if not manifest:
            told[0] = replace(told[0], manifest={}, environment={})
        (folder / "events.jsonl").write_text("".join(encode(event, seconds=1.0) + "\n" for event in told))

    def runs(self, arm, *, diverged=(), **facts):
        for init, _ in arm.seeds:
            ends = {"status": "diverged", "steps": STEPS // 2} if init in diverged else {}
            self.run(arm, init, **facts, **ends)

    def report(self):
        """(study, rows, what they come to, the page)."""
        study = read_study(self.folder)
        rows = rows_of(study)
        found = conclude(study, rows)
        page = write_study_report(study, rows, found)
        return SimpleNamespace(
            study=study, rows=rows, found=found, file=page, page=page.read_text(), folder=self.folder
        )


def _told(arm, folder, seed, shift, steps, status, evaluations, probes, draw):
    manifest = {"id": arm.id, "model": {"n_layer": 2, "n_head": 4}, "schedule": {"lr": 1e-3}, "seed": {"init": seed}}
    if arm.role == "arm" and arm.twin == "none":
        manifest["patch"] = {"unified_ra": {"rank": 4, "note": f"<i>{arm.name}</i>"}}
    yield events.RunStarted(
        id=arm.id, title=arm.name, scale="tiny", folder=str(folder), recipe_hash="0" * 64, run_hash="1" * 64,
        seed_init=seed, seed_data=seed, device="cpu", precision="fp32", parameters=arm.parameters,
        flops_per_token=arm.train_flops_per_token, kv_bytes_per_token=arm.kv_bytes_per_token, train_tokens=10**6,
        val_tokens=10**5, budget={"steps": STEPS}, total_steps=STEPS, tokens_per_step=TOKENS // STEPS,
        peak_flops={"measured": None, "datasheet": None}, baselines={"uniform": 4.2}, manifest=manifest,
        environment={"torch": "2.11", "cpu": "some <cpu>", "threads": 1 + (seed == 2), "variables": {"OMP": "1"}},
    )  # fmt: skip
    weights = {"wte": f"8x8 {seed:016d}"}
    yield events.Fingerprints("d" * 16, f"{seed:016d}", "w" * 16, weights, "document", (100,) * 12)
    budget = (arm.tokens or TOKENS) / TOKENS
    start = 3.0 + 0.02 * seed - 0.08 * math.log(budget)
    documents = np.random.default_rng(7).normal(0, 0.1, 12)
    for end in range(EVERY, steps + 1, EVERY):
        losses = [
            start + math.exp(-step / 8) + shift * step / STEPS + draw.normal(0, 0.01)
            for step in range(end - 9, end + 1)
        ]
        bad = status == "diverged" and end == steps
        yield events.Window(
            step=end, tokens=end * TOKENS // STEPS, spent=end / STEPS, grad_norms=(1.0,) * 10, skipped=0, lr=1e-3,
            losses=(*losses[:-1], math.nan if bad else losses[-1]), seconds=1.0, tokens_per_second=1600.0, mfu=None,
            mfu_datasheet=None, peak_memory=2**30 if (arm.role, seed) == ("base", 2) else 2**28, graphs=1, recompiles=0,
            eta=None,
        )  # fmt: skip
        if end > steps - EVERY * evaluations and not bad:
            loss = start + math.exp(-end / 8) + shift * end / STEPS
            parts = tuple((loss + documents + draw.normal(0, 0.003, 12)).tolist())
            yield events.Evaluated(step=end, loss=loss, tokens=1200, seconds=0.1, parts=parts)
        if probes:
            gates = (0.9 + 0.1 * draw.random((2, 4))).tolist()
            yield events.Probed(
                end, {"unified_ra": {"w_std": gates}, "kv_prune": {"kept fraction": [[1 - end / 80], [0.5]]}}
            )
    if status != "unfinished":
        yield events.RunEnded(status, steps, None if status == "diverged" else start, {})


@pytest.fixture
def synthetic(tmp_path):
    return Synthetic(tmp_path / "runs")


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """The report of a study that has everything a study can have."""
    return rich_study(Synthetic(tmp_path_factory.mktemp("rich") / "runs")).report()


def rich_study(study):
    base, control = planned_arm("v0", role="base"), planned_arm("v0 wide 4.2", role="control", parameters=105_000)
    v9 = planned_arm("v9", parameters=104_000, train_flops_per_token=640_000, control=control.name)
    kept = [
        planned_arm(f"kept keep={k}", point={"patch.kv_prune.keep": k}, kv_bytes_per_token=512) for k in (0.5, 0.25)
    ]
    twins = [planned_arm(f"aa_{kind}", twin=kind, recipe=base.recipe) for kind in ("ulp", "init", "order")]
    arms = [v9, planned_arm("v7"), planned_arm("<v3> & co"), *kept, planned_arm("wild"), *twins, control]
    ruler = [planned_arm(f"v0 x{factor:g}", role="ruler", of="v0", tokens=int(TOKENS * factor)) for factor in (0.5, 2)]
    tuning = [
        planned_arm(f"{arm.name} tuning lr={lr}", role="tuning", of=arm.name, point={"lr": lr}, seeds=((11, 11),))
        for arm in (base, v9)
        for lr in (1, 2, 4)
    ]
    tuned = [planned_arm(f"{arm.name} (tuned)", role="tuned", of=arm.name, point={"lr": 2}) for arm in (base, v9)]
    planned, late = (base, *arms, planned_arm("not yet"), *ruler, *tuning), planned_arm("late idea")
    study.plan(*planned)
    study.told("Amended", **asdict(plan_of(*planned, late, hash="def456" * 10)), checked=["weights are alike"])
    costs = {
        arm.name: asdict(Cost(0.01, 1 + at / 50, (1 + at / 60, 1 + at / 40), 9)) for at, arm in enumerate((base, v9))
    }
    study.told("Costs", machine="a bench", costs=costs)
    study.told("Tuned", arms=[asdict(arm) for arm in tuned])
    effects = {"v9": -0.03, "<v3> & co": 0.02, "kept keep=0.25": 0.06, "late idea": -0.02, "v9 (tuned)": -0.03}
    for arm in (base, *arms, *ruler, *tuning, *tuned, late):
        study.runs(arm, effect=effects.get(arm.name, 0.0), probes=arm.name in ("v9", "kept keep=0.5"),
                   diverged=(3,) if arm.name == "wild" else ())  # fmt: skip
    return study


def small_study(study, *names, seeds=SEEDS, **facts):
    """A baseline and these arms, all done."""
    arms = [planned_arm("v0", role="base", seeds=seeds), *(planned_arm(name, seeds=seeds) for name in names)]
    study.plan(*arms, seeds=seeds)
    for arm in arms:
        study.runs(arm, effect=-0.03 * (arm.name == "v9"), **facts)
    return arms


class Outline(HTMLParser):
    """Tags that are open, ids, headings and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.faults, self.text = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        if tag == "svg" and not given.get("aria-label"):
            self.faults.append("a figure without words")
        if tag == "img" and not given.get("alt"):
            self.faults.append("a picture without words")
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}>")

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def text_of(page):
    return " ".join(" ".join(Outline(page).text).split())


# -- the numbers --------------------------------------------------------------------------------------------------


def by_hand(out, arm):
    """Final loss by seed from raw lines."""
    found = {}
    for folder in arm.folders:
        lines = [json.loads(line) for line in (out / folder / "events.jsonl").read_text().splitlines()]
        if any(line["event"] == "RunEnded" and line["status"] == "done" for line in lines):
            found[lines[0]["seed_init"]] = [line["loss"] for line in lines if line["event"] == "Evaluated"][-1]
    return found


def test_a_script_that_knows_nothing_of_ratrain_finds_the_same_numbers(rich):
    told = {arm["arm"]: arm for arm in json.loads((rich.folder / "results.json").read_text())["arms"]}
    text = text_of(rich.page)
    arms = [arm for arm in rich.study.now.arms if arm.role in ("base", "arm", "control") and arm.name != "not yet"]
    base = by_hand(rich.study.out, arms[0])
    for arm in arms:
        losses = by_hand(rich.study.out, arm)
        assert {run["init"]: run["loss"] for run in told[arm.name]["runs"] if run["status"] == "done"} == losses
        differences = [loss - base[seed] for seed, loss in losses.items()]
        assert told[arm.name]["differences"] == pytest.approx(differences, abs=1e-15)
        assert f"{statistics.fmean(losses.values()):.4f}" in text
        if arm is not arms[0] and len(losses) == len(SEEDS):
            effect = next(v for v in (*rich.found.judgement.verdicts, *rich.found.later.verdicts) if v.arm == arm.name)
            assert effect.effect == pytest.approx(statistics.fmean(differences[: effect.seeds]), abs=1e-12)
            assert f"{effect.effect:+.4f}" in text


def test_results_for_programs_are_strict_json_and_complete(rich):
    def refuse(name):
        raise AssertionError(name)

    record = json.loads((rich.folder / "results.json").read_text(), parse_constant=refuse)
    assert {"id", "title", "file", "seeds", "hash", "arms", "costs", "checked", "conclusion"} <= set(record)
    assert {arm["role"] for arm in record["arms"]} == {"base", "arm", "control", "ruler", "tuning", "tuned"}
    assert record["conclusion"] == json.loads(json.dumps(rich.found.record()))
    rows = list(csv.DictReader((rich.folder / "results.csv").read_text().splitlines()))
    assert len(rows) == sum(len(row.runs) for row in rich.rows)
    assert Counter(row["status"] for row in rows)["diverged"] == 1
    assert not [row for row in rows if row["status"] == "done" and not float(row["loss"])]


def test_the_table_has_a_line_per_arm_and_links_lead_to_its_runs(rich):
    table = cells(rich.rows, rich.found)
    assert {len(row) for row in table} == {len(HEAD)}
    assert [row[0] for row in table] == [row.arm.name for row in rich.rows if row.arm.role != "tuning"]
    assert {row[0]: row[4] for row in table}["v9"] == "better"
    markdown = (rich.folder / "results.md").read_text()
    assert all(f"| {row[0]} |" in markdown for row in table)
    link = rich.folder / "runs" / "v9 s1"
    assert link.is_symlink() and (link / "events.jsonl").exists()
    assert not (rich.folder / "runs" / "not yet s1").exists()


# -- the page -----------------------------------------------------------------------------------------------------


def test_sections_stand_in_their_order_and_verdicts_come_first(rich):
    outline = Outline(rich.page)
    assert outline.faults == [] and outline.open == []
    assert [name for name in outline.ids if not re.fullmatch("[mp][0-9a-f]+", name)] == [
        "verdicts", "tuned", "later", "effects", "curves", "ruler", "noise", "costs", "gates", "configuration",
        "environment", "reproduce",
    ]  # fmt: skip
    assert len(set(outline.ids)) == len(outline.ids)
    assert rich.page.index("Before you believe it") < rich.page.index('id="verdicts"') < rich.page.index("<svg")


def test_verdicts_are_words_with_signs_and_what_was_added_later_is_exploratory(rich):
    rows = re.findall(r'<tr[^>]*><th scope="row">(.*?)</th>(.*?)</tr>', rich.page)
    lines = {unescape(re.sub("<small>.*", "", name)): line for name, line in reversed(rows)}
    for verdict in rich.found.judgement.verdicts:
        if verdict.arm != "not yet":
            assert f"</span> {verdict.word}</span>" in lines[verdict.arm]
    assert "exploratory" in lines["late idea"] and "exploratory" not in lines["v9"]
    assert "1 of 4 diverged" in lines["wild"] and "3/4, 1 diverged" in lines["wild"]
    order = list(dict.fromkeys(unescape(re.sub("<small>.*", "", name)) for name, _ in rows))
    assert order[:3] == ["v0", "v9", "late idea"] and order.index("v7") < order.index("kept keep=0.25")


def test_the_peak_memory_of_an_arm_is_that_of_most_of_its_runs(rich):
    costs = rich.page[rich.page.index("peak MiB") :].partition("</table>")[0]
    assert ">256</td>" in costs
    assert "1,024" not in costs


def test_what_nobody_began_is_in_one_line_and_in_no_figure(rich):
    assert rich.page.count("not yet") == 1
    assert "Not begun, and in no figure: not yet." in rich.page


def test_the_page_needs_no_network_and_no_script(rich):
    assert set(re.findall(r'(?:src|href)="([^",#]*)', rich.page)) == {"data:image/png;base64", "data:", ""}
    assert not re.search(r"<script|@import|<iframe|<form|javascript:", rich.page)
    assert set(re.findall(r"url\((.)", rich.page)) == {"#"}
    assert len(rich.page) < 2**20


def test_what_manifests_say_stays_text(rich):
    assert (
        "<v3>" not in rich.page and "<b>& more" not in rich.page and "<i>" not in rich.page and "<cpu>" not in rich.page
    )
    text = text_of(rich.page)
    assert "ideas <b>& more</b>" in text and "<v3> & co" in text and "some <cpu>" in text
    assert "ratrain --ablate 'manifests/x file.toml' --scale tiny" in text


def test_the_page_tells_what_it_stands_on(rich):
    text = text_of(rich.page)
    for words in (
        "delta 0.01 nats", "plan hash def456", "weights are alike", "arms late idea", "not comparable",
        "measured in isolation on a bench", "A/A ulp", "correlate by", "4 seeds find an effect", "worth in tokens",
        "against its control", "patch.unified_ra.rank", "threads", "beyond the curve", "at the point of the same grid",
    ):  # fmt: skip
        assert words in text, words
    assert all(warning in text for warning in rich.found.warnings)


def test_the_same_events_give_the_same_bytes(synthetic):
    small_study(synthetic, "v9", "v1", probes=True)
    first = synthetic.report().page
    assert synthetic.report().page == first


@pytest.mark.parametrize(("evaluations", "kind"), [(4, "validation"), (1, "training")])
def test_curves_are_of_evaluations_or_where_there_is_one_of_training_losses(synthetic, evaluations, kind):
    small_study(synthetic, "v9", evaluations=evaluations)
    page = synthetic.report().page
    assert f'aria-label="{kind} loss over steps, by arm"' in page
    assert ("moving average" in page) == (kind == "training")


def test_many_arms_are_small_figures_of_their_difference(synthetic):
    small_study(synthetic, *(f"arm{n}" for n in range(8)))
    page = synthetic.report().page
    assert "loss over steps, by arm" not in page
    assert page.count("its loss minus the baseline") == 8


def test_one_seed_has_a_page_without_verdicts(synthetic):
    small_study(synthetic, "v9", seeds=((1, 1),))
    report = synthetic.report()
    assert report.found is None
    assert "No verdict yet" in report.page and "none yet" in report.page and "they are no intervals" in report.page
    assert json.loads((report.folder / "results.json").read_text())["conclusion"] is None
    assert "No verdict yet" in (report.folder / "results.md").read_text()


def test_a_study_that_has_hardly_begun_has_a_page(synthetic):
    arms = [planned_arm("v0", role="base"), planned_arm("v9")]
    synthetic.plan(*arms)
    assert "Not begun, and in no figure: v0, v9." in synthetic.report().page
    synthetic.run(arms[1], 2, steps=20, status="unfinished", evaluations=1)
    page = synthetic.report().page
    assert "0/4, 1 unfinished" in page and "Not begun, and in no figure: v0." in page
    synthetic.run(arms[0], 1)
    assert "0/4, 1 unfinished" in synthetic.report().page


def test_runs_that_diverged_or_say_nothing_of_their_manifest_are_shown(synthetic):
    arms = [planned_arm("v0", role="base"), planned_arm("v9")]
    synthetic.plan(*arms)
    synthetic.runs(arms[0], manifest=False)
    synthetic.runs(arms[1], manifest=False, diverged=(1, 2, 3, 4))
    text = text_of(synthetic.report().page)
    assert "4 of 4 diverged" in text and "No manifest is on record." in text


def test_without_matplotlib_the_page_has_its_tables(synthetic, monkeypatch):
    small_study(synthetic, "v9")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = synthetic.report().page
    assert "figures need matplotlib" in page and "<svg" not in page and "v9" in page


# -- in a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = BROWSER.find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine")
    return BROWSER.Browser(program, tmp_path_factory.mktemp("browser"))


def test_a_browser_has_nothing_to_complain_of(rich, browser, tmp_path):
    assert browser.complaints(rich.file) == []
    wrong = tmp_path / "wrong.html"
    wrong.write_text("<script>console.error('seen')</script>")
    assert "seen" in browser.complaints(wrong)[0]


def test_a_browser_asks_the_network_for_nothing(rich, browser, tmp_path):
    pages = {name: tmp_path / f"{name}.html" for name in ("empty", "asking")}
    pages["empty"].write_text("<!doctype html>")
    pages["asking"].write_text("<!doctype html><img src='http://ratrain.invalid/x.png'>")
    assert "ratrain.invalid" in browser.hosts(pages["asking"])
    own = {"accounts.google.com", "clients2.google.com", "www.google.com"}  # the browser's, whatever it shows
    assert browser.hosts(rich.file) <= browser.hosts(pages["empty"]) | own


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_its_window_and_takes_its_scheme(rich, browser, width, dark):
    layout = browser.layout(rich.file, width=width, dark=dark)
    assert (layout["width"], layout["scroll"], layout["wide"]) == (width, width, [])
    assert layout["letters"] > 8
    page, ink = (sum(map(int, re.findall(r"\d+", layout[name])[:3])) for name in ("page", "ink"))
    assert layout["dark"] is dark and (page < ink) is dark
