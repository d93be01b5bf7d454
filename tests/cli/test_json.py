"""--json: every command that tells something has it, and stdout is then one document of strict JSON."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest
import torch

from ratrain import cli
from ratrain.cli.printing.document import print_document
from ratrain.errors import Exit

TELL_NOTHING = {
    "completion": "prints a script for a shell",
    "tail": "shows log.txt to people; events.jsonl beside it holds the same as JSON lines",
}
STREAMS = {"train", "calibrate", "smoke"}  # JSON lines: events as they come, or a line per manifest
QUICK = ("--scale", "tiny", "--set", "compile.scope=off", "--set", "train.budget={steps=4}", "--set", "eval.windows=2")
STUDY = 'id = "mine"\nbase = "v0"\nscale = "tiny"\narms = ["v9"]\nseed.init = [1, 2, 3]\n'
CASES = [
    ("list",), ("list", "v9"), ("show", "v9"), ("diff", "v0", "v9"), ("schema",), ("check", "v9", "v0"),
    ("check", "v99"), ("widen", "v10", "--scale", "tiny"), ("plan", "v9"), ("data", "shakespeare"),
    ("prepare", "shakespeare"), ("prepare", "texts", "--out", "shards", "--val-fraction", "0.5"),
    ("convert", "legacy/defconfigs/gpt2-vanilla-baseline"), ("audit", "decoder.py:Model"), ("check runs", "quick.toml"),
    ("verify", "v0", "--set", "compile.scope=off"), ("coordcheck", "v9", "--widths", "32,64", "--seeds", "1"),
    ("runs",), ("report", "v9"), ("report", "v9", "v0"),
    ("report", "metrics.json"), ("sample", "v9", "--tokens", "3"), ("sample", "v9", "--tokens", "3", "--stats"),
    ("eval", "v9", "v0", "--windows", "2"), ("export", "v9"), ("export", "v9", "--to", "hf"),
    ("export", "v9", "--to", "nanogpt"), ("replay", "v9", "--steps", "2"),
    ("prune-eval", "v9", "--keep", "0.5", "--rule", "mass"), ("runs tag", "v9", "good"), ("runs untag", "v9", "good"),
    ("runs note", "v9", "best"), ("runs rm", "v1", "--yes"), ("train", "v9", *QUICK, "--dry-run"),
    ("train", "v9", *QUICK), ("--ablate", "study.toml", "--dry-run", *QUICK[2:]),
]  # fmt: skip
FAULTY = {("check", "v99"): Exit.BAD_MANIFEST, ("audit", "decoder.py:Model"): Exit.BAD_DATA}  # documents too
ELSEWHERE = {
    "--ladder": "tests/ablation/ladder/test_ladder.py",
    "try": "tests/ablation/test_trial.py",
    "profile": "tests/profile/test_profile.py",
    "calibrate": "tests/patches/test_kv_splice.py",
    "smoke": "tests/run/test_smoke.py",
}


LEAKING = """
import torch


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.head = torch.nn.Embedding(32, 8), torch.nn.Linear(8, 32)

    def forward(self, tokens):
        x = self.wte(tokens)
        return self.head(x + x.mean(1, keepdim=True))
"""


def strict(text: str):
    """Parses one JSON document; refuses NaN and Infinity, which Python's parser accepts."""

    def refuse(word: str):
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def parser_of(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    cli._every()[name].add_arguments(parser)
    return parser


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with runs of v0, v1 and v9, and the files that the commands read."""
    place = tmp_path_factory.mktemp("place")
    for name in ("v0", "v1", "v9"):
        assert cli.main([name, *QUICK, "--device", "cpu", "--out", str(place / "runs"), "--json"]) == 0
    (place / "texts").mkdir()
    (place / "texts" / "a.txt").write_text("To be, or not to be: that is the question.")
    (place / "texts" / "b.txt").write_text("Once more unto the breach, dear friends, once more.")
    (place / "quick.toml").write_text('id = "quick"\nextends = "gpt2.toml"\n')
    (place / "study.toml").write_text(STUDY)
    metrics = {"eval_iteration": [0, 10], "train_loss": [4.0, 3.5], "val_loss": [4.0, math.nan]}
    (place / "metrics.json").write_text(json.dumps({**metrics, "iteration": [10], "forward_time_ms": [3.0]}))
    (place / "decoder.py").write_text(LEAKING)
    torch.use_deterministic_algorithms(False)
    return place


@pytest.fixture
def here(runs, monkeypatch):
    monkeypatch.chdir(runs)
    monkeypatch.setattr("ratrain.engine.engine._SAMPLE_TOKENS", 2)
    yield runs
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", sorted(cli._every()))
def test_a_command_has_json_or_a_reason_to_have_none(name):
    assert ("--json" in parser_of(name)._option_string_actions) != (name in TELL_NOTHING)


def test_every_command_with_json_is_run_here_or_in_a_test_of_its_own():
    here = {case[0] for case in CASES}
    assert here | ELSEWHERE.keys() == cli._every().keys() - TELL_NOTHING.keys()
    for file in ELSEWHERE.values():
        assert "json.loads(" in (Path(__file__).parents[2] / file).read_text(), file


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_stdout_is_one_document_of_strict_json(case, ratrain, here):
    device = ["--device", "cpu"] if "--device" in parser_of(case[0])._option_string_actions else []
    name, *words = case
    code, out, err = ratrain(*(name.split() if name != "train" else ()), *words, *device, "--json")
    assert code == FAULTY.get(case, Exit.DONE), err
    document = strict(out)
    assert isinstance(document, (dict, list))
    assert document or case in FAULTY


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_a_stream_says_in_its_help_that_it_is_lines(name):
    (action,) = [a for a in parser_of(name)._actions if a.dest == "json"]
    assert "line" in action.help


def test_events_are_lines_of_strict_json(ratrain, here):
    code, out, _ = ratrain("v9", *QUICK, "--device", "cpu", "--json", "--out", "other")
    assert code == 0
    assert [strict(line)["event"] for line in out.splitlines()][-1] == "RunEnded"


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("show", "v99"), Exit.MISSING),
        (("report", "v99"), Exit.MISSING),
        (("runs", "rm", "v9"), Exit.USAGE),  # would ask
        (("diff", "v0", "v9", "--set", "schedule.lr=-1"), Exit.BAD_MANIFEST),
        (("sample", "v9", "--tokens", "x"), Exit.USAGE),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_error_leaves_stdout_empty_and_is_text_on_stderr(argv, code, ratrain, here):
    got, out, err = ratrain(*argv, "--json")
    assert (got, out) == (code, "")
    assert err


def test_numbers_that_json_lacks_become_null(capsys):
    print_document({"a": math.nan, "b": [1.5, -math.inf], "c": (math.inf,), "d": Path("x")})
    assert strict(capsys.readouterr().out) == {"a": None, "b": [1.5, None], "c": [None], "d": "x"}


def test_a_report_has_the_numbers_of_the_events(ratrain, here):
    told = strict(ratrain("report", "v9", "v0", "--json")[1])
    for run in told["runs"]:
        events = [json.loads(line) for line in (Path(run["run"]) / "events.jsonl").read_text().splitlines()]
        losses = [event["loss"] for event in events if event["event"] == "Evaluated"]
        assert [evaluated["loss"] for evaluated in run["evaluated"]] == losses
    v9, v0 = (run["evaluated"][-1]["loss"] for run in told["runs"])
    assert [run["difference"] for run in told["runs"]] == [0, v0 - v9]
    assert "patch.unified_ra.rank" in {row["key"] for row in told["keys"]}


def test_a_shown_manifest_has_every_value_and_its_origin(ratrain, here):
    told = strict(ratrain("show", "v9", "--set", "schedule.lr=1e-3", "--json")[1])
    assert told["keys"]["schedule.lr"] == {"value": 1e-3, "origin": "--set"}
    assert told["keys"]["id"]["origin"].startswith("manifests/unified_ra_v9.toml:")


BROKEN = """
from ratrain import Mechanism, Patch, register


@register("unfinished")
class Unfinished(Patch):
    target: str = "blocks.*.attn.score"

    def build(self, old, spec):
        return Scale()


class Scale(Mechanism):
    def forward(self):
        raise RuntimeError("unfinished")
"""


def test_a_broken_contract_is_told_with_its_fault(ratrain, here):
    (here / "patches").mkdir()
    (here / "patches" / "unfinished.py").write_text(BROKEN)
    (here / "broken.toml").write_text('id = "broken"\nextends = "gpt2.toml"\n[patch.unfinished]\n')
    code, out, _ = ratrain("verify", "broken.toml", "--json")
    told = strict(out)
    assert (code, told["id"], told["holds"]) == (Exit.BAD_MANIFEST, "broken", False)
    assert "unfinished" in told["contracts"][-1]["fault"]
