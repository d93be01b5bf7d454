"""Runs scored on a local folder, through the command line: values by hand, records, and messages."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch

import ratrain as package
from ratrain.storage.run_log import read_run
from ratrain.storage.task_log import read_scores, weights_of

pytest.importorskip("lm_eval")
from lm_eval.api import metrics

from ratrain.tasks.harness import score_of
from tests.tasks.conftest import CHOICE, DOCUMENTS, write_tasks

QUICK = ("train.budget.steps=3", "compile.scope=off", "eval.windows=2")


@pytest.fixture(scope="module")
def runs(trained):
    return [trained(name, *QUICK) for name in ("v0", "v9")]


@pytest.fixture
def scored(ratrain, folder):
    """Scores runs on the folder; returns the JSON by run, and the messages."""

    def scored(*runs, code=0, tasks=folder, words=()):
        got, out, err = ratrain("eval", *runs, "--tasks", tasks, "--device", "cpu", "--json", *words)
        assert got == code, err
        return (json.loads(out) if not code else {}), err

    return scored


def logprobs(model, tokens):
    with torch.no_grad():
        rows = model.logits(torch.tensor([tokens[:-1]]))[0].double().log_softmax(-1)
    return rows[range(len(tokens) - 1), tokens[1:]]


def test_accuracy_and_bits_per_byte_are_those_by_hand(runs, scored):
    loaded = package.load(runs[1])
    encode, eot = loaded.tokenizer.encode_ordinary, loaded.tokenizer.eot_token
    right, bits, size = 0, 0.0, 0
    for document in DOCUMENTS:
        before = encode(document["q"])
        sums = []
        for choice in document["choices"]:
            whole = encode(f"{document['q']} {choice}")
            sums.append(float(logprobs(loaded.model, whole)[len(before) - 1 :].sum()))
        right += sums.index(max(sums)) == document["gold"]
        tokens, block = [eot, *encode(document["text"])], loaded.model.spec.block_size
        for begin in range(1, len(tokens), block):
            end = min(begin + block, len(tokens))
            nats = logprobs(loaded.model, tokens[max(0, end - 1 - block) : end])[begin - end :].sum()
            bits -= float(nats) / math.log(2)
        size += len(document["text"].encode())
    found, _ = scored(runs[1])
    (of_run,) = found.values()
    acc, text = of_run["word_choice"]["scores"]["acc"], of_run["whole_text"]["scores"]
    assert acc["value"] == pytest.approx(right / 12, abs=1e-12)
    assert acc["se"] == pytest.approx(math.sqrt(right / 12 * (1 - right / 12) / 11), abs=1e-12)
    assert text["bits_per_byte"]["value"] == pytest.approx(bits / size, rel=1e-6)
    assert text["byte_perplexity"]["value"] == pytest.approx(2 ** (bits / size), rel=1e-6)
    assert of_run["next_words"]["documents"] == 12


def test_scores_are_kept_with_the_run_and_reported(runs, scored, ratrain):
    scored(runs[0])
    scored(runs[0])  # replaces the same
    log = read_run(runs[0])
    assert [one.task for one in log.tasks] == ["word_choice", "next_words", "whole_text"]
    assert {(one.step, one.weights) for one in log.tasks} == {weights_of(runs[0])}
    assert log.evaluated[-1].step == log.tasks[0].step
    assert all(len(one.digest) == 64 and one.harness for one in log.tasks)
    code, out, _ = ratrain("report", runs[0])
    assert code == 0
    for text in (out, (runs[0] / "report.html").read_text()):
        assert "word_choice" in text and log.tasks[0].digest[:16] in text


def test_differences_of_two_runs_are_paired_by_document(runs, scored):
    found, _ = scored(*runs)
    base, other = (of["whole_text"]["scores"]["bits_per_byte"] for of in found.values())
    assert base["difference"] is None
    assert other["difference"]["value"] == pytest.approx(other["value"] - base["value"], rel=1e-9)
    change = [b - a for a, b in zip(base["parts"], other["parts"], strict=True)]
    n, mean = sum(base["weights"]), other["difference"]["value"]
    rest = sum((d - w * mean) ** 2 for d, w in zip(change, base["weights"], strict=True))
    assert other["difference"]["se"] == pytest.approx(math.sqrt(12 / 11 * rest) / n, rel=1e-9)
    assert other["difference"]["se"] < base["se"]


def test_a_limited_score_is_marked_as_such(runs, scored, ratrain, folder):
    found, _ = scored(runs[0], words=("--limit", 5, "--fewshot", 1))
    (of_run,) = found.values()
    assert {(one["limited"], one["documents"], one["available"]) for one in of_run.values()} == {(True, 5, 12)}
    assert of_run["word_choice"]["fewshot"] == 1
    code, out, _ = ratrain("eval", runs[0], "--tasks", folder / "choice.yaml", "--limit", 5, "--device", "cpu")
    assert code == 0
    assert "5 of 12" in out and "limited, for a trial and not to be quoted: word_choice 5 of 12 documents" in out
    assert len({one.digest for one in read_scores(runs[0]) if one.task == "word_choice"}) >= 2


def test_the_batch_changes_no_score(runs, scored):
    one, many = (scored(runs[1], words=("--batch", size))[0] for size in (1, 50))
    for task, of in next(iter(one.values())).items():
        for metric, score in of["scores"].items():
            same = next(iter(many.values()))[task]["scores"][metric]["value"]
            assert score["value"] == pytest.approx(same, rel=1e-6), (task, metric)


def test_a_metric_without_a_value_is_told(runs, scored, folder, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    more = "  - metric: acc_mutual\n    aggregation: mean\n    higher_is_better: true\n"
    (folder / "choice.yaml").write_text(CHOICE + more)
    found, err = scored(runs[0], tasks=folder / "choice.yaml")
    assert [*next(iter(found.values()))["word_choice"]["scores"]] == ["acc"]
    assert "word_choice: no value came of its metric acc_mutual" in err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--tasks", ","), 2, "expected tasks"),
        (("--tasks", "./nowhere/"), 66, "./nowhere/: no such file or folder"),
        (("--limit", "3"), 2, "--limit is for downstream tasks; expected --tasks beside it"),
        (("--tasks", "x.yaml", "--windows", "3"), 2, "--windows is for the loss on held-out text"),
        (("--tasks", "x.yaml", "--limit", "0"), 2, "expected a whole number from 1 on"),
    ],
)
def test_a_wrong_command_is_one_message(runs, ratrain, words, code, told):
    got, out, err = ratrain("eval", runs[0], *words)
    assert (got, out) == (code, "")
    assert told in err


def test_without_the_harness_the_command_tells_how_to_install_it(runs, ratrain, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, err = ratrain("eval", runs[0], "--tasks", folder)
    assert (code, err.count("\n")) == (69, 1)
    assert "pip install 'ratrain[eval]'" in err


def test_a_report_never_imports_the_harness(runs):
    report = f"from ratrain.cli import main; main(['report', {str(runs[1])!r}])"
    words = f"import sys; {report}; print('lm_eval' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_an_error_of_a_mean_and_of_perplexities_is_that_of_a_ratio():
    documents = [(-3.0, 2), (-9.0, 4), (-1.0, 1), (0.0, 0)]  # the last text is empty
    value = metrics.weighted_perplexity(documents)
    score = score_of(value, documents, metrics.weighted_perplexity, False)
    ratio = 13 / 7
    error = math.sqrt(3 / 2 * sum((part - ratio * n) ** 2 for part, n in [(3, 2), (9, 4), (1, 1)])) / 7
    assert value == pytest.approx(math.exp(ratio))
    assert (score.scale, score.weights) == ("perplexity", (2.0, 4.0, 1.0))
    assert score.se == pytest.approx(value * error, rel=1e-12)
    mean = score_of(0.5, [1, 0, 1, 0], metrics.mean, True)
    assert mean.se == pytest.approx(metrics.mean_stderr([1, 0, 1, 0]), rel=1e-12)
    other = score_of(0.5, [1, 0, 1, 0], metrics.median, True)
    assert other.parts == () and 0 < (other.se or 0) < 1


def test_tasks_write_no_file_but_the_record(runs, scored, tmp_path, monkeypatch):
    tasks = write_tasks(tmp_path / "again")
    before = {file for file in runs[0].rglob("*") if file.is_file()}
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    scored(runs[0], tasks=tasks)
    assert {file.name for file in {*runs[0].rglob("*")} - before if file.is_file()} <= {"tasks.jsonl"}
    assert not (tmp_path / "home").exists()
    assert {file.name for file in tasks.iterdir()} == {"documents.jsonl", "choice.yaml", "text.yaml", "drawn.yaml"}


def test_warnings_of_the_harness_are_passed_on_once(runs, scored, folder):
    (folder / "choice.yaml").write_text(CHOICE.replace("doc_to_target: gold", "doc_to_target: golden"))
    found, err = scored(runs[0], tasks=folder / "choice.yaml")
    assert next(iter(found.values()))["word_choice"]["scores"]["acc"]["value"] == 0
    assert err.count("Label index was not in within range") == 1
    assert "(and 11 more warnings)" in err


def test_a_generation_key_that_is_not_supported_is_told_with_its_task(runs, scored, folder):
    (folder / "drawn.yaml").write_text((folder / "drawn.yaml").read_text().replace("max_gen_toks: 4", "num_beams: 4"))
    _, err = scored(runs[0], tasks=folder / "drawn.yaml", code=65)
    assert err.startswith("ratrain: next_words: generation_kwargs: num_beams: not supported")
