"""Every recall task has one right answer, which a solver of a few lines finds in the context."""

from __future__ import annotations

import numpy as np
import pytest

from ratrain.config.recall import FIRST_KEY, RECALL, room_faults
from ratrain.config.schema import DataSection
from ratrain.data.recall.drawing import BLANK, IGNORED, MARK, Draw, Shape
from ratrain.data.recall.source import Recall

VOCABULARY = 40  # 0, 1, keys 2 to 20, values 21 to 39
FIRST_VALUE = 21


def solve_mqar(row):
    """The value that stood after the same key; pairs come first."""
    known, answers, at = {}, {}, 0
    while row[at] not in known and FIRST_KEY <= row[at] < FIRST_VALUE and row[at + 1] >= FIRST_VALUE:
        known[row[at]] = row[at + 1]
        at += 2
    for place in range(at, len(row)):
        if row[place] in known:
            answers[place] = known[row[place]]
    return answers


def solve_induction(row):
    """The symbol after the earlier occurrence."""
    seen, answers = {}, {}
    for place, symbol in enumerate(row):
        if FIRST_KEY <= symbol < FIRST_VALUE:
            if symbol in seen and FIRST_KEY <= row[seen[symbol] + 1] < FIRST_VALUE:
                answers[place] = row[seen[symbol] + 1]
            seen.setdefault(symbol, place)
    return answers


def solve_copy(row):
    """The i-th symbol at the i-th mark."""
    symbols = [symbol for symbol in row if FIRST_KEY <= symbol < FIRST_VALUE]
    return dict(zip([place for place, symbol in enumerate(row) if symbol == MARK], symbols, strict=True))


def solve_needle(row):
    """The symbol after the first occurrence of the last one."""
    return {len(row) - 1: row[list(row).index(row[-1]) + 1]}


SOLVERS = {"mqar": solve_mqar, "induction": solve_induction, "copy": solve_copy, "needle": solve_needle}


def recall(source, *, block_size=32, vocab_size=VOCABULARY, **keys):
    section = DataSection(source=source, tokenizer="symbols", **keys)
    return Recall(section, block_size=block_size, vocab_size=vocab_size)


def rows_of(task, count=200, step=0, seed=1):
    return task.draw(count, seed=seed, step=step, stream=1, block_size=task.shape.block_size)


def test_every_task_has_a_solver():
    assert set(SOLVERS) == set(RECALL)


@pytest.mark.parametrize("noise", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("distance", [0, 5])
@pytest.mark.parametrize("source", RECALL)
def test_a_solver_finds_every_answer_in_the_row(source, distance, noise):
    tokens, targets = rows_of(recall(source, pairs=6, distance=distance, noise=noise))
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        asked = {at: answer for at, answer in enumerate(wanted) if answer != IGNORED}
        solved = SOLVERS[source](row)
        assert {at: solved.get(at) for at in asked} == asked


@pytest.mark.parametrize("source", RECALL)
def test_each_row_has_the_same_number_of_answers_so_that_micro_batches_weigh_alike(source):
    _, targets = rows_of(recall(source, pairs=5))
    assert set((targets != IGNORED).sum(1).tolist()) == {1 if source == "needle" else 5}


@pytest.mark.parametrize("source", RECALL)
def test_the_answer_is_at_least_the_distance_away(source):
    for distance in (0, 3, 11):
        tokens, targets = rows_of(recall(source, pairs=4, distance=distance))
        told = {"mqar": 7, "induction": None, "copy": None, "needle": None}[source]
        for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
            first = next(at for at, answer in enumerate(wanted) if answer != IGNORED)
            symbols = [at for at, symbol in enumerate(row[:first]) if symbol not in (BLANK, MARK)]
            last = symbols[-1] if told is None else told
            assert first - last - 1 >= distance


@pytest.mark.parametrize("source", RECALL)
def test_the_longest_rows_that_are_let_through_can_be_drawn_and_one_more_is_refused(source):
    sizes = {"block_size": 30, "vocab_size": 80}
    for distance in (0, 7):
        fits = [p for p in range(1, 31) if not [*room_faults(source, pairs=p, distance=distance, **sizes)]]
        tokens, targets = rows_of(recall(source, pairs=fits[-1], distance=distance, **sizes), count=20)
        assert fits == [*range(1, fits[-1] + 1)]
        for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
            assert sum(answer != IGNORED for answer in wanted) == (1 if source == "needle" else fits[-1])
            assert len(row) == 30


@pytest.mark.parametrize("source", ["mqar", "needle", "induction"])
def test_the_smallest_vocabulary_that_is_let_through_has_enough_keys(source):
    sizes = {"pairs": 6, "distance": 0, "block_size": 64}
    least = next(size for size in range(2, 99) if not [*room_faults(source, vocab_size=size, **sizes)])
    tokens, targets = rows_of(recall(source, pairs=6, block_size=64, vocab_size=least), count=50)
    assert tokens.max() < least
    assert targets.max() < least


@pytest.mark.parametrize("source", RECALL)
def test_fillers_are_blank_or_values_with_the_probability_noise(source):
    task = recall(source, pairs=2, block_size=128, noise=0.25)
    tokens, _ = rows_of(task, count=500)
    symbols = {"mqar": (2, 0, 4), "induction": (0, 0, 6), "copy": (0, 2, 2), "needle": (2, 0, 3)}[source]
    values, marks, keys = (count * 500 for count in symbols)
    blanks = (tokens == BLANK).sum()
    fillers = tokens.size - values - marks - keys
    assert (tokens == MARK).sum() == marks
    assert ((tokens >= FIRST_KEY) & (tokens < FIRST_VALUE)).sum() == keys
    assert 1 - blanks / fillers == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / fillers))


@pytest.mark.parametrize("source", RECALL)
def test_places_and_symbols_are_drawn_evenly(source):
    task = recall(source, pairs=1, block_size=16)
    tokens, targets = rows_of(task, count=20_000)
    first = FIRST_KEY if source in ("induction", "copy") else FIRST_VALUE
    answers = targets[targets != IGNORED]
    counts = np.bincount(answers - first, minlength=19)
    assert len(counts) == 19
    even = 20_000 / 19
    assert ((counts - even) ** 2 / even).sum() < 54  # chi-square of 18 degrees of freedom: one in 50 000 is larger
    starts = np.argmax((tokens >= FIRST_KEY) & (tokens < FIRST_VALUE), axis=1)
    if source in ("copy", "needle"):
        spread = np.bincount(starts)
        assert len(spread) == {"copy": 15, "needle": 14}[source]
        assert spread.min() > 0.8 * spread.mean()


def test_a_batch_is_a_function_of_seed_and_step_alone():
    task = recall("mqar", pairs=3)
    a, b = task.sampler(seed=1, batch=8, block_size=32), task.sampler(seed=1, batch=8, block_size=32)
    b.batch(5)
    for step in (0, 5):
        assert all(x.equal(y) for x, y in zip(a.batch(step), b.batch(step), strict=True))
    assert not a.batch(0)[0].equal(a.batch(1)[0])
    assert not a.batch(0)[0].equal(task.sampler(seed=2, batch=8, block_size=32).batch(0)[0])


def test_processes_share_the_rows_of_one_batch():
    task = recall("copy", pairs=3)
    whole = task.sampler(seed=3, batch=8, block_size=32).batch(4)
    parts = [task.sampler(seed=3, batch=8, block_size=32, rank=rank, world=4).batch(4) for rank in range(4)]
    for which in (0, 1):
        assert np.array_equal(np.concatenate([part[which] for part in parts]), whole[which])


def test_draws_are_uniform_and_the_same_on_every_version_of_numpy():
    draw = Draw(1, step=2, stream=3, shape=Shape(8, VOCABULARY, 2, 0, 0.0))
    drawn = draw.uniform(3)
    words = np.random.Philox(key=1, counter=[0, 0, 2, 3]).random_raw(3)
    assert drawn.tolist() == [int(word) // 2**11 / 2**53 for word in words.tolist()]


def test_validation_rows_are_the_same_for_every_seed_and_never_those_of_training():
    task = recall("mqar", pairs=6, noise=1.0)
    windows = task.validation(block_size=32, count=64)
    assert windows.tokens.equal(recall("mqar", pairs=6, noise=1.0).validation(block_size=32, count=64).tokens)
    held = {tuple(row) for row in windows.inputs.tolist()}
    trained = {tuple(row) for step in range(50) for row in task.sampler(seed=1, batch=64, block_size=32).order(step)[0]}
    assert not held & trained


def test_the_fingerprint_names_task_and_sizes():
    prints = [
        recall("mqar", pairs=3).fingerprint, recall("needle", pairs=3).fingerprint, recall("mqar", pairs=4).fingerprint,
        recall("mqar", pairs=3, noise=0.5).fingerprint, recall("mqar", pairs=3, distance=1).fingerprint,
        recall("mqar", pairs=3, block_size=33).fingerprint, recall("mqar", pairs=3, vocab_size=41).fingerprint,
    ]  # fmt: skip
    assert len(set(prints)) == len(prints)
    assert recall("mqar", pairs=3).fingerprint == prints[0]
