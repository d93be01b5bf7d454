"""What a person reads of a run."""

from __future__ import annotations

import io

import pytest

from ratrain import events
from ratrain.sinks.progress import Bar, Lines, describe, progress


def told(*stated):
    stream = io.StringIO()
    sink = Lines(stream)
    for event in stated:
        sink(event)
    return stream.getvalue().splitlines()


def test_a_piped_window_is_one_line(window):
    (line,) = told(window())
    for part in (
        "step      5",
        "25.0 %",
        "loss 7.3750",
        "lr 3.00e-04",
        "norm 2.00",
        "1.28k tok/s",
        "MFU 42 %",
        "1 min 15 s",
    ):
        assert part in line


def test_what_is_not_known_is_left_out(window):
    (line,) = told(window(mfu=None, eta=None))
    assert "MFU" not in line
    assert "ETA" not in line


def test_skips_and_recompiles_are_warned_of(window):
    _, *warnings = told(window(skipped=2, recompiles=1))
    assert [line.split(":")[0] for line in warnings] == ["warning", "warning"]
    assert "2 step(s) skipped" in warnings[0]
    assert "1 recompile(s)" in warnings[1]


def test_the_start_says_what_is_trained_on_what_and_where(started):
    text = "\n".join(told(started()))
    for part in ("v1  Unified RA", "tiny scale, seed 1", "fp32 on cpu", "recipe 01234567", "1.23M parameters"):
        assert part in text
    for part in ("20 steps of 128 tokens", "1.78M tokens", "uniform 7.625", "folder runs/v1/s1"):
        assert part in text


def test_what_computes_attention_is_one_line():
    seconds = {"math": 0.0098, "flash": 0.00112, "cudnn": 0.001}
    (line,) = told(events.AttentionChosen("cudnn", "measured", "bfloat16 [8, 12, 1024, 64] on H100", seconds))
    assert line == (
        "attention by cudnn, the fastest for bfloat16 [8, 12, 1024, 64] on H100: cudnn 1 ms, flash 1.12 ms, math 9.8 ms"
    )
    (line,) = told(events.AttentionChosen("torch", "default", "float32 [4, 2, 32, 16] on cpu", {}))
    assert line == "attention by torch's own choice for float32 [4, 2, 32, 16] on cpu"


def test_two_seeds_are_told_where_they_differ(started):
    assert "seed 1-7," in "\n".join(told(started(seed_data=7)))


def pruned(zeros):
    return events.PruningEvaluated(
        step=5, target=2 / 3, sparsity=2 / 3, zeros=zeros, pruned=["a.weight", "b.weight"], reached=False, not_zero=2,
        loss_dense_best=7.0, loss_target_best=None, loss=7.1, loss_reloaded=7.2, peak_memory=1 << 20,
        step_seconds={"with looks": None, "without": 0.01}, bytes_dense=72, bytes_packed=24,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("event", "parts"),
    [
        (
            events.Resumed(3, "c/step-3", ("step-5 is bad",)),
            ["warning: step-5 is bad", "resumed at step 3 from c/step-3"],
        ),
        (events.PhaseStarted("compile", "inductor, to train"), ["compiling with inductor, to train (up to a minute"]),
        (events.Compiled("train", 12.3, 4, 4, True), ["compiled 4 graphs to train in 12.3 s, from the cache"]),
        (events.Evaluated(5, 7.12344, 256, 0.5), ["validation loss 7.1234"]),
        (events.Saved(5, "c/step-5", 1_140_000, 0.04), ["saved step-5 (1.14MB"]),
        (
            events.PruningBegan("state", ("a.weight", "b.weight"), 4096, 92_032),
            ["prunes by state from 2 matrices, not the token table: 4,096 weights of 92,032 parameters"],
        ),
        (events.Pruned(5, 0.5, 2048, True), ["50.0000% is pruned, the target"]),
        (
            pruned({"a.weight": (9, 9), "b.weight": (3, 9), "wte.weight": (0, 18)}),
            [
                "pruned: 12 of 18 weights are zero (66.6667%, target 66.6667%; 33.33% with the token table)",
                "pruned: validation loss 7.1000, but 7.2000 from disk, best dense 7.0000",
                "warning: the run ended before the target was reached; an earlier prune.end would leave time",
                "warning: nothing is left of a.weight; prune.layers = 'uniform' would leave some of each",
                "warning: 2 masked weights are not zero",
            ],
        ),
        (events.OptimizerTold(5, {"spikes": 1}, {"spikes": 3}), ["the optimizer counts 1 spikes (3 in all)"]),
        (events.Sampled(5, "To be\nor not\n"), ["sample:", "  | To be", "  | or not"]),
        (events.Notice("all is well"), ["all is well"]),
        (events.Notice("it burns", "warning"), ["warning: it burns"]),
        (
            events.RunEnded("done", 5, 7.1234, {"train": 90.0}),
            ["done at step 5, validation loss 7.1234 (train 1 min 30 s)"],
        ),
        (events.RunEnded("diverged", 5, None), ["diverged at step 5"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, events.Event) else "",
)
def test_each_event_is_told(event, parts):
    lines = told(event)
    assert len(lines) == len(parts)
    assert all(part in line for part, line in zip(parts, lines, strict=True))


@pytest.mark.parametrize("event", [events.PhaseStarted("evaluate"), events.Machine(1, 1.0, 1)])
def test_what_only_feeds_the_bar_is_not_a_line(event):
    assert describe(event) == []


def test_no_line_breaks_its_stamp(one_of_each):
    stream = io.StringIO()
    sink = Lines(stream, stamped=True)
    for event in one_of_each:
        sink(event)
    assert all(line[10] == "T" and line[19] == "Z" for line in stream.getvalue().splitlines())


def test_a_pipe_gets_lines_and_a_terminal_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    assert isinstance(progress(terminal), Bar)
    assert isinstance(progress(io.StringIO()), Lines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress(terminal), Lines)


def test_the_bar_takes_every_event_and_lets_the_terminal_go(one_of_each, capsys):
    bar = Bar()
    for event in one_of_each:
        bar(event)
    bar.close()
    out = capsys.readouterr().out
    assert "validation loss 7.1234" in out
    assert "all is not well" in out


def test_no_color_is_respected(monkeypatch, one_of_each, capsys):
    monkeypatch.setenv("NO_COLOR", "1")
    bar = Bar()
    for event in one_of_each:
        bar(event)
    bar.close()
    assert "\x1b[3" not in capsys.readouterr().out
