"""A run on a recall task: answers alone are predicted and counted, and everything else is as for text."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from ratrain import load, read_run
from ratrain.config.recall import RECALL
from ratrain.data.source import open_data
from ratrain.engine.engine import Engine
from ratrain.errors import Exit, PreemptedError
from ratrain.storage.checkpoint import load_newest

SMALL = (
    "model.n_embd=16",
    "model.block_size=24",
    "train.batch=4",
    "train.micro_batch=2",
    "eval.windows=6",
    "eval.every=2",
)
QUICK = (*SMALL, "data.pairs=3", "schedule.warmup={steps=1}", "train.budget.steps=4", "compile.scope=off")


def command(*overrides):
    return ["--scale", "recall", "--device", "cpu", *(word for key in (*QUICK, *overrides) for word in ("--set", key))]


@pytest.fixture
def recalled(ratrain, tmp_path):
    """Trains a few steps; returns the run's folder."""

    def recalled(name="v0", *overrides):
        code, _, err = ratrain(name, *command(*overrides), "--out", tmp_path)
        assert code == Exit.DONE, err
        return max(tmp_path.glob(f"{name}-recall-*/s*"), key=lambda path: path.stat().st_mtime)

    return recalled


@pytest.mark.parametrize("task", RECALL)
def test_loss_and_accuracy_are_those_of_the_answers_alone(recalled, task):
    run = recalled("v0", f"data.source={task}")
    loaded, last = load(run), read_run(run).evaluated[-1]
    spec = loaded.manifest.model
    data = open_data(loaded.manifest.data, vocab_size=spec.vocab_size, block_size=spec.block_size)
    windows = data.validation(block_size=spec.block_size, count=6)
    logits = loaded.model.double().logits(windows.inputs).flatten(0, 1)
    targets = windows.targets.flatten()
    assert last.loss == pytest.approx(F.cross_entropy(logits, targets, ignore_index=-1).item(), rel=1e-5)
    answers = targets >= 0
    assert last.accuracy == pytest.approx((logits.argmax(-1) == targets)[answers].double().mean().item())
    assert last.tokens == answers.sum() == 6 * (1 if task == "needle" else 3)
    assert last.bits_per_byte is None
    assert len(last.parts) == 6
    assert sum(last.parts) / 6 == pytest.approx(last.loss)


def test_micro_batches_give_the_gradient_of_the_whole_batch(recalled):
    whole = read_run(recalled("v0", "train.micro_batch=4"))
    parts = read_run(recalled("v0", "train.micro_batch=2"))
    losses = [[loss for window in log.windows for loss in window.losses] for log in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(tiny, tmp_path):
    manifest = tiny("v9", *QUICK, "data.noise=0.5", scale="recall")

    def engine(name):
        return Engine(manifest, checkpoints=tmp_path / name, device=torch.device("cpu"), emit=lambda event: None)

    engine("whole").run()
    with pytest.raises(PreemptedError):
        engine("cut").run(until=2)
    engine("cut").run()
    whole, cut = (load_newest(tmp_path / name)[0] for name in ("whole", "cut"))
    assert whole.step == cut.step == 4
    assert all(torch.equal(tensor, cut.model[name]) for name, tensor in whole.model.items())


def test_the_commands_tell_accuracy_and_samples_are_numbers(recalled, ratrain, tmp_path):
    run = recalled()
    code, out, _ = ratrain("eval", run, "--json", "--device", "cpu")
    (held,) = json.loads(out).values()
    assert code == 0
    assert held["accuracy"] == read_run(run).evaluated[-1].accuracy
    code, out, _ = ratrain("sample", run, "--prompt", "5 40 7 41 5", "--tokens", 2, "--device", "cpu")
    assert code == 0
    assert [word.isdecimal() for word in out.split()] == [True] * 7
    for prompt in ("Enter HAMLET", "5 64"):
        code, _, err = ratrain("sample", run, "--prompt", prompt, "--device", "cpu")
        assert (code, err.count("\n")) == (Exit.USAGE, 1)
    code, out, _ = ratrain("report", run, run, "--out", tmp_path)
    assert code == 0
    assert f"{100 * held['accuracy']:.2f} %" in out


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.pairs=9", "data.pairs"),
        ("data.distance=17", "data.pairs"),
        ("model.vocab_size=7", "data.pairs"),
        ("data.tokenizer=gpt2", "data.tokenizer"),
        ("data.source=shakespeare", "data.tokenizer"),
        ("data.noise=1.5", "data.noise"),
        ("data.most_overlap=0.5", "data"),
    ],
)
def test_rows_without_room_and_keys_that_nothing_reads_are_refused_by_name(ratrain, tmp_path, override, key):
    code, _, err = ratrain("v0", *command(override), "--out", tmp_path)
    assert code == Exit.BAD_MANIFEST
    assert f": {key}: " in err
    assert "1 fault" in err


def test_a_misspelt_task_is_named_right(ratrain, tmp_path):
    code, _, err = ratrain("v0", *command("data.source=mqarr"), "--out", tmp_path)
    assert code == Exit.BAD_MANIFEST
    assert "did you mean 'mqar'?" in err
