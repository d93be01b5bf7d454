"""The history as a page: every number is there, and a browser shows it on a phone and in the dark."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.history import page, record

BROWSER = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "report/browser.py")))


def line(suite, commit, rows, *, machine="AMD EPYC, 2 cores", **more):
    kept = {
        name: {"ms": 100 * ratio, "median": ratio, "low": ratio - 0.02, "high": ratio + 0.02, "rounds": 60}
        for name, ratio in rows.items()
    }
    return {
        "suite": suite, "date": "2026-11-20", "commit": commit, "machine": machine, "torch": "2.13.0", "threads": 1,
        "rows": kept, **more,
    }  # fmt: skip


LINES = [
    line("variants", "aaaaaaa", {"unified_ra_v0": 1, "unified_ra_v9": 1.0625}),
    line("variants", "bbbbbbb-dirty", {"unified_ra_v0": 1, "unified_ra_v9": 1.0125, "odd <name>": 1.5}),
    line("peers", "bbbbbbb", {"ours": 1, "nanoGPT": 1.75}),
    line("engine", "bbbbbbb", {"bare": 1, "engine": 1.004}),
    line("compare study", "ccccccc", {"v9": 0.875}, against="aaaaaaa"),
    line("variants", "ccccccc", {"unified_ra_v0": 1, "unified_ra_v9": 0.9875}, machine="NVIDIA H100"),
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with the history of two machines."""
    folder = tmp_path_factory.mktemp("history")
    for name, of in (("amd", LINES[:-1]), ("h100", LINES[-1:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in of))
    return folder


@pytest.fixture(scope="module")
def file(kept, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "history.html"
    out.write_text(page.page(page.read(kept)))
    return out


def test_every_number_is_there(file):
    text = file.read_text()
    for told in ("1.062", "1.012", "1.750", "1.004", "0.875", "0.988", "against aaaaaaa", "175.0 ms", "NVIDIA H100"):
        assert told in text, told
    assert "odd &lt;name&gt;" in text and "<name>" not in text
    assert "A step of each variant, over V0&#39;s on NVIDIA H100" in text


def test_a_figure_for_each_arm_that_is_not_the_measure_itself(file):
    words = re.findall(r'aria-label="([^"]*): ratio of (\d) measurements', file.read_text())
    assert words == [
        ("unified_ra_v9", "2"), ("odd &lt;name&gt;", "1"), ("unified_ra_v9", "1"), ("nanoGPT", "1"), ("engine", "1"),
        ("v9", "1"),
    ]  # fmt: skip


def test_the_page_needs_nothing_but_itself_and_is_the_same_again(file, kept):
    text = file.read_text()
    assert "<script" not in text and not re.search(r'(?:src|href)="(?!#|data:)', text)
    assert page.page(page.read(kept)) == text


def test_a_damaged_line_is_named(tmp_path, monkeypatch):
    (tmp_path / "amd.jsonl").write_text(json.dumps(LINES[0]) + "\nnot json\n")
    monkeypatch.setattr(page, "HISTORY", tmp_path)
    with pytest.raises(SystemExit, match=r"error: amd\.jsonl:2: no result of a bench"):
        page.main()


def test_an_empty_history_is_told(tmp_path):
    assert "Nothing is kept yet" in page.page(page.read(tmp_path))


def test_what_is_kept_in_the_repository_can_be_drawn():
    measured = page.read(page.HISTORY)
    assert measured and all(one.rows for one in measured)


def test_what_is_recorded_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "_FOLDER", tmp_path)
    monkeypatch.setenv("RECORD", "1")
    monkeypatch.setattr(record, "_git", lambda verb, *_: "ddddddd" if verb == "describe" else "")
    record.record("compare tiny", LINES[0]["rows"], against="aaaaaaa")
    (one,) = page.read(tmp_path)
    assert (one.suite, one.torch, one.commit, one.against) == ("compare tiny", torch.__version__, "ddddddd", "aaaaaaa")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = BROWSER.find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine")
    return BROWSER.Browser(program, tmp_path_factory.mktemp("browser"))


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1200, False)])
def test_the_page_fits_its_window_and_takes_its_scheme(file, browser, width, dark):
    layout = browser.layout(file, width=width, dark=dark)
    assert (layout["width"], layout["scroll"], layout["wide"], layout["dark"]) == (width, width, [], dark)
    assert layout["letters"] > 8
    assert browser.complaints(file) == []
