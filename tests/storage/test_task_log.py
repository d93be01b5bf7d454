"""tasks.jsonl keeps the newest score of each kind, whole, whoever writes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ratrain.errors import DataError
from ratrain.events import Event, Score, TaskScored
from ratrain.storage.task_log import add_score, read_scores

SCORE = Score(0.5, 0.1, True, "mean", (1.0, 0.0), (1.0, 1.0))
SCORED = TaskScored(6, "a" * 64, "word", "d" * 64, "0.4.13", 2, 2, 0, 0, {"acc": SCORE})


def test_a_score_comes_back_as_it_was(tmp_path):
    add_score(tmp_path, SCORED, seconds=1.5)
    assert read_scores(tmp_path) == [SCORED]
    assert Event.from_record(SCORED.record()) == SCORED


def test_the_same_weights_and_documents_are_scored_once(tmp_path):
    other, later = replace(SCORED, digest="e" * 64), replace(SCORED, harness="0.5")
    for scored in (SCORED, other, later):
        add_score(tmp_path, scored, seconds=0.0)
    assert read_scores(tmp_path) == [other, later]


def test_a_torn_line_is_left_out_and_a_foreign_one_is_told(tmp_path):
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"event": "TaskSco')
    add_score(tmp_path, SCORED, seconds=0.0)
    assert read_scores(tmp_path) == [SCORED]
    file.write_text('{"event": "TaskScored", "step": "x"}\n')
    with pytest.raises(DataError, match="holds an event that ratrain did not write"):
        read_scores(tmp_path)


def test_writers_side_by_side_lose_no_score(tmp_path):
    all_ = [replace(SCORED, task=f"task {at}") for at in range(20)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda scored: add_score(tmp_path, scored, seconds=0.0), all_))
    assert {scored.task for scored in read_scores(tmp_path)} == {scored.task for scored in all_}
