"""The page of a run that pruned its weights says what its events and its weights say."""

from __future__ import annotations

import html
import json
from dataclasses import replace

import pytest

from ratrain.report.figures import loss_figure
from ratrain.report.pruning import pruning_facts, pruning_rows
from ratrain.storage.checkpoint import load_newest
from ratrain.storage.run_log import read_run

PRUNED = ("train.budget.steps=20", "prune.kind=magnitude", "prune.target=0.75", "prune.every=4", "eval.every=4")


@pytest.fixture(scope="module")
def run(trained):
    return trained("gpt2", *PRUNED)


def test_the_page_tells_what_is_zero_matrix_by_matrix(ratrain, run):
    code, out, _ = ratrain("report", run)
    weights = load_newest(run / "checkpoints")[0].model
    page = html.unescape((run / "report.html").read_text())
    assert code == 0
    assert "18,432 of 24,576: 75.0000% in 8 matrices" in out
    assert "18,432 of 24,576: 75.0000%" in page
    for name, n, zeros, share in pruning_rows(read_run(run)):
        count = int((weights[name] == 0).sum())
        assert (n, zeros, share) == (f"{weights[name].numel():,}", f"{count:,}", f"{count / weights[name].numel():.2%}")
        assert name in page


def test_losses_of_each_stage_are_those_of_the_summary(run):
    told = json.loads((run / "summary.json").read_text())["pruning"]
    facts = dict(pruning_facts(read_run(run)))
    assert facts["validation loss, best at the target"] == f"{told['loss_target_best']:.4f} nats per token"
    assert facts["validation loss, of the file, in a model that is not pruned"] == f"{told['loss']:.4f} nats per token"
    assert "warning" not in facts


def test_how_much_is_pruned_is_drawn_beside_the_loss(run):
    log = read_run(run)
    with_it = loss_figure(log)
    log.windows = [replace(window, sparsity=0.0) for window in log.windows]
    assert loss_figure(log) != with_it


def test_a_run_that_prunes_nothing_says_nothing_of_it(ratrain, trained):
    folder = trained("gpt2", "train.budget.steps=2")
    assert not pruning_facts(read_run(folder))
    assert "prun" not in ratrain("report", folder)[1].split("peak memory")[0]
