"""Runs side by side: each run's own numbers, the differences of what they were set up with, and no verdict."""

import json
import re
import sys

import pytest

from ratrain.report.compare import compare_page, compare_rows, named
from ratrain.storage.run_log import read_run


@pytest.fixture(scope="module")
def folders(trained):
    words = ("train.budget.steps=12", "eval.every=4")
    return [trained("v0", *words), trained("v9", *words, "schedule.lr=0.002")]


@pytest.fixture(scope="module")
def logs(folders):
    return [read_run(folder) for folder in folders]


def test_the_table_has_the_numbers_of_each_run(folders, logs):
    head, *rows = compare_rows(logs)
    lasts = []
    for folder, row in zip(folders, rows, strict=True):
        told = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        lasts.append([event["loss"] for event in told if event["event"] == "Evaluated"][-1])
        facts = dict(zip(head, row, strict=True))
        assert (facts["val loss"], facts["status"], facts["step"]) == (f"{lasts[-1]:.4f}", "done", "12")
        assert facts["parameters"] == f"{told[0]['parameters']:,}"
    assert [row[head.index("vs first")] for row in rows] == ["-", f"{lasts[1] - lasts[0]:+.4f}"]


def test_losses_on_other_windows_are_not_compared(trained, ratrain, folders, tmp_path):
    other = trained("v0", "train.budget.steps=4", "eval.windows=3", "compile.scope=off")
    both = [read_run(folders[0]), read_run(other)]
    head, first, second = compare_rows(both)
    at = {name: head.index(name) for name in ("vs first", "windows", "bits/byte")}
    assert second[at["vs first"]] == "-"
    assert first[at["windows"]] != second[at["windows"]]
    assert first[at["bits/byte"]] == f"{both[0].evaluated[-1].bits_per_byte:.4f}"
    code, out, _ = ratrain("report", folders[0], other, "--out", tmp_path)
    assert code == 0
    assert "warning: other validation windows than " in out
    assert "other validation windows than " in (tmp_path / "comparison.html").read_text()


def test_the_page_shows_curves_and_where_the_manifests_differ(logs):
    page = compare_page(logs)
    assert 'aria-label="validation loss over steps' in page and 'aria-label="training loss over steps' in page
    keys = dict(re.findall(r'<th scope="row">([^<]*)</th>(.*?)</tr>', page))
    assert "0.002" in keys["schedule.lr"]
    assert any(key.startswith("patch.") for key in keys)
    assert "model.n_layer" not in keys and "seed.init" not in keys
    assert "no verdict" in page


def test_the_page_needs_no_network_and_no_script(logs):
    page = compare_page(logs)
    assert set(re.findall(r'(?:src|href)="([^",#]*)', page)) == {"data:", ""}
    assert "<script" not in page and set(re.findall(r"url\((.)", page)) == {"#"}
    assert compare_page(logs) == page


def test_runs_are_called_by_what_tells_them_apart(logs):
    assert [name.split("/")[-1] for name in named(logs)] == ["s1", "s1"]
    assert len({name.split("-")[0] for name in named(logs)}) == 2
    assert list(named([logs[0], logs[0]])) == [f"{logs[0].path} (1)", f"{logs[0].path} (2)"]


def test_a_run_that_has_hardly_begun_is_beside_the_others(folders, logs, tmp_path):
    first = (folders[0] / "events.jsonl").read_text().splitlines()[0]
    started = {**json.loads(first), "title": "<b>", "manifest": {}}
    (tmp_path / "events.jsonl").write_text(json.dumps(started) + "\n")
    new = read_run(tmp_path)
    assert compare_rows([*logs, new])[-1][2:8] == ("unfinished", "-", "-", "-", "-", "-")
    page = compare_page([new, *logs])
    assert "No manifest is on record for" in page and "<b>" not in page


def test_without_matplotlib_the_page_has_its_tables(logs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = compare_page(logs)
    assert "need matplotlib" in page and "<svg" not in page
