"""The report of a run says what its events say, and nothing that is not there."""

import html
import io
import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ratrain.report.figures import gate_figures
from ratrain.report.gates import gate_rows
from ratrain.storage.run_log import RunLog, Series, read_run


@pytest.fixture(scope="module")
def run(trained):
    return trained("v6", "train.budget.steps=20", "activation.kind=after", "activation.after={steps=5}")


@pytest.fixture
def told(run):
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


@pytest.fixture
def copy(run, tmp_path):
    """The run again, with other events."""
    (tmp_path / "resolved.toml").write_text("")

    def copy(*lines):
        (tmp_path / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return tmp_path

    return copy


def test_the_page_and_the_figures_are_written(ratrain, run):
    code, out, _ = ratrain("report", run)
    assert code == 0
    assert str(run / "report.html") in out
    names = {file.name for file in (run / "figures").iterdir()}
    assert names == {"loss.png", "gates-unified_ra.png", "gates-reciprocal_mlp.png"}
    assert all((run / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_the_page_needs_no_network_and_no_script(ratrain, run):
    ratrain("report", run)
    page = (run / "report.html").read_text()
    assert set(re.findall(r'(?:src|href)="([a-z]+:[^,]*)', page)) == {"data:image/png;base64", "data:"}
    assert "<script" not in page and "url(" not in page and "@import" not in page
    assert page.count("<img") == 3


def test_the_loss_is_that_of_the_last_evaluation(ratrain, run, told):
    loss = [event for event in told if event["event"] == "Evaluated"][-1]["loss"]
    assert f"{loss:.4f} nats per token" in ratrain("report", run)[1]
    assert f"{loss:.4f} nats per token" in html.unescape((run / "report.html").read_text())


def test_gates_are_summed_up_as_the_events_tell_them(run, told):
    probed = [e["values"]["unified_ra"]["w_std"] for e in told if e["event"] == "Probed" and "w_std" in str(e)]
    first, last = ([value for row in rows for value in row] for rows in (probed[0], probed[-1]))
    line = next(row for row in gate_rows(read_run(run)) if row[:2] == ("unified_ra", "w_std"))
    layers = " ".join(f"{statistics.fmean(row):.3g}" for row in probed[-1])
    numbers = (statistics.fmean(first), statistics.fmean(last), statistics.pstdev(last), min(last), max(last))
    assert line[2:] == (*(f"{number:.3g}" for number in numbers), layers)


def test_every_step_has_its_loss(run, told):
    steps, losses = read_run(run).losses()
    assert steps == list(range(1, 21))
    assert losses == [loss for event in told if event["event"] == "Window" for loss in event["losses"]]


def test_a_layer_without_the_patch_and_a_number_that_is_none_are_shown_as_such(copy, told):
    started = json.dumps(next(e for e in told if e["event"] == "RunStarted"))
    probe = {"event": "Probed", "step": 5, "values": {"p": {"w": [[], ["nan"]], "u": [[], [1.0, 2.0]]}}}
    rows = gate_rows(read_run(copy(started, json.dumps(probe))))
    assert rows[1][1] == "w" and rows[1][-1] == "- -"
    assert rows[2][2:] == ("1.5", "1.5", "0.5", "1", "2", "- 1.5")


@pytest.mark.parametrize(
    "probes",
    [
        {"w": Series(np.array([5, 10]), np.linspace(0, 1, 8).reshape(2, 2, 2)),
         "gradient of w": Series(np.array([10]), np.geomspace(1e-6, 1, 4).reshape(1, 2, 2))},
        {"w": Series(np.array([5, 10]), 0.95 + np.linspace(0, 1e-7, 4).reshape(2, 2, 1))},
        {"w": Series(np.array([0]), np.full((1, 2, 1), np.nan)), "u": Series(np.array([0]), np.ones((1, 2, 1)))},
    ],
)  # fmt: skip
def test_heat_maps_have_nothing_black_which_a_dark_page_would_hide(probes):
    (png,) = gate_figures(RunLog(Path(), started={}, probes={"p": probes})).values()
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), dtype=int)
    assert pixels[..., 3].any()
    assert not ((pixels[..., 3] > 60) & (pixels[..., :3].max(-1) < 60)).any()


def test_a_run_that_has_hardly_begun_has_a_page(ratrain, copy, told):
    started = json.dumps(next(e for e in told if e["event"] == "RunStarted"))
    folder = copy(started, '{"event": "Windo')
    code, out, _ = ratrain("report", folder)
    assert code == 0 and "unfinished" in out
    assert (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("lines", "exit_code", "message"),
    [
        ((), 65, "holds no run"),
        (("{}", "[1]", "nonsense"), 65, "holds no run"),
        (('{"event": "RunStarted"}', '{"event": "Evaluated"}'), 65, "holds an event that ratrain did not write"),
    ],
)
def test_events_that_are_none_are_one_message(ratrain, copy, lines, exit_code, message):
    code, _, err = ratrain("report", copy(*lines))
    assert code == exit_code
    assert message in err and err.count("\n") == 1


def test_a_folder_that_is_no_run_is_told(ratrain, tmp_path):
    assert ratrain("report", tmp_path / "nothing", "--out", tmp_path)[0] == 66
