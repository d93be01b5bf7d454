"""Tasks from folders: their digests, and the message for each that cannot be had."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from ratrain.errors import DataError, MissingError, UnavailableError, UsageError

pytest.importorskip("lm_eval")
import datasets

from ratrain.tasks import source
from ratrain.tasks.source import open_tasks
from tests.tasks.conftest import CHOICE, DOCUMENTS, write_tasks


def digests(folder, **options):
    return {task.name: task.digest for task in open_tasks([str(folder)], **options)}


def test_a_folder_has_all_its_tasks_and_a_file_has_its_own(folder):
    tasks = open_tasks([str(folder)])
    assert [task.name for task in tasks] == ["word_choice", "next_words", "whole_text"]
    assert {(task.documents, task.available, task.fewshot) for task in tasks} == {(12, 12, 0)}
    assert [task.name for task in open_tasks([str(folder / "text.yaml")])] == ["whole_text"]
    assert [task.name for task in open_tasks(["my_tasks/text.yaml"], beside=folder.parent)] == ["whole_text"]


def test_a_digest_follows_documents_and_requests_and_no_path(folder, tmp_path):
    first = digests(folder)
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert digests(moved) == first
    assert not first.items() & digests(folder, limit=11).items()
    assert digests(folder, fewshot=1)["word_choice"] != first["word_choice"]
    assert digests(folder, fewshot=1) == digests(folder, fewshot=1)
    write_tasks(moved, [*DOCUMENTS[:-1], {**DOCUMENTS[-1], "q": "The grace was"}])
    changed = digests(moved)
    assert changed["word_choice"] != first["word_choice"]
    (folder / "choice.yaml").write_text(CHOICE.replace("metric: acc", "metric: acc_norm"))
    assert digests(folder)["word_choice"] != first["word_choice"]


def test_local_tasks_leave_nothing_in_the_cache_of_datasets(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    open_tasks([str(folder)])
    assert not (tmp_path / "cache").exists()


def test_few_shot_examples_are_those_of_the_task_where_it_fixes_them_at_none(folder):
    (folder / "choice.yaml").write_text(CHOICE + "num_fewshot: 0\n")
    (task,) = open_tasks([str(folder / "choice.yaml")], fewshot=3)
    assert task.fewshot == 0


def test_an_unknown_name_is_told_with_the_nearest(monkeypatch):
    from lm_eval.tasks import TaskManager

    shipped = Path(importlib.util.find_spec("lm_eval.tasks").origin).parent
    few = TaskManager(include_path=str(shipped / "hellaswag"), include_defaults=False)
    monkeypatch.setattr(source, "_shipped", lambda: few)
    with pytest.raises(MissingError, match=r"helaswag: lm-eval knows no such task.*did you mean 'hellaswag'"):
        open_tasks(["helaswag"])


def test_data_that_cannot_be_reached_name_the_task_and_the_remedy(folder, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = CHOICE.replace("dataset_path: json", "dataset_path: nobody-at-all/nothing-here")
    (folder / "choice.yaml").write_text(text.replace("data_files:\n    test: documents.jsonl", "revision: main"))
    with pytest.raises(UnavailableError, match=r"word_choice: its data cannot be had: .*a local folder of tasks"):
        open_tasks([str(folder / "choice.yaml")])


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("task: [", DataError, "choice.yaml: lm-eval cannot read it"),
        ("output_type: multiple_choice\n", DataError, "choice.yaml: lm-eval cannot read it: Unknown config shape"),
        (CHOICE.replace("documents.jsonl", "no.jsonl"), MissingError, "word_choice: .*no.jsonl.*beside the YAML"),
        (CHOICE.replace("{{q}}", "{{ q.a.b }}"), DataError, "word_choice: lm-eval cannot load this task"),
        (CHOICE.replace("multiple_choice", "guessing"), DataError, "word_choice: .*invalid output_type 'guessing'"),
        (CHOICE + "unsafe_code: true\n", UsageError, "word_choice: runs code that a model writes"),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_loaded_is_one_message(folder, text, error, told):
    (folder / "choice.yaml").write_text(text)
    with pytest.raises(error, match=told) as caught:
        open_tasks([str(folder / "choice.yaml")])
    assert "\n" not in str(caught.value)


def test_an_empty_continuation_is_refused_with_its_document(folder):
    write_tasks(folder, [{**DOCUMENTS[0], "q": ""}, *DOCUMENTS[1:]])
    text = CHOICE.replace('doc_to_choice: "{{choices}}"', "doc_to_choice: ['', a, b]")
    (folder / "choice.yaml").write_text(text + 'target_delimiter: ""\n')
    with pytest.raises(DataError, match="word_choice: "):
        open_tasks([str(folder / "choice.yaml")])


def test_a_folder_with_a_task_that_cannot_be_read_is_refused_whole(folder):
    (folder / "worse.yaml").write_text("task: worse\n  output_type: multiple_choice\n")
    with pytest.raises(DataError, match=r"worse\.yaml: lm-eval cannot read it"):
        open_tasks([str(folder)])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["./nothing/"], "nothing/: no such file or folder"),
        (["no.yaml"], "no.yaml: no such file or folder"),
        ([".."], None),
        (["my_tasks/documents.jsonl"], "documents.jsonl: is no task"),
        (["my_tasks", "my_tasks/text.yaml"], "my_tasks/text.yaml: has the task 'whole_text', as has my_tasks"),
    ],
)
def test_a_path_to_no_task_is_told(folder, monkeypatch, words, told):
    empty = folder.parent / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty if words == [".."] else folder.parent)
    if words == [".."]:
        monkeypatch.chdir(empty)
        words, told = ["."], r"\.: holds no task"
    with pytest.raises((MissingError, DataError, UsageError), match=told):
        open_tasks(words)


def test_without_the_harness_the_message_installs_it(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UnavailableError, match=r"lm_eval is missing: pip install 'ratrain\[eval\]'"):
        open_tasks([str(folder)])
