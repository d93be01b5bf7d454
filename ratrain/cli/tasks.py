"""The part of `ratrain eval` on downstream tasks: a table of scores, and paired differences between runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ratrain.cli.arguments import count, natural
from ratrain.cli.printing.document import print_line
from ratrain.cli.printing.tables import table
from ratrain.errors import UsageError

if TYPE_CHECKING:
    from ratrain.events import TaskScored


def words(text: str) -> list[str]:
    """Parses names and paths with commas between them."""
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"expected tasks, such as hellaswag,arc_easy or ./my_tasks/, got {text!r}")
    return list(dict.fromkeys(found))


def task_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("downstream tasks (docs/commands.md)")
    group.add_argument(
        "--tasks", type=words, metavar="T,T", help="of lm-evaluation-harness: names, YAML files, folders of these"
    )
    group.add_argument("--limit", type=count, metavar="N", help="the first N documents of each task alone, as a trial")
    group.add_argument("--fewshot", type=natural, metavar="N", help="examples before each document (the task's own)")
    group.add_argument("--batch", type=count, metavar="N", help="requests in a pass (the run's micro-batch)")


def check_together(args: argparse.Namespace) -> None:
    """Raises UsageError for options that belong to the other kind of evaluation."""
    if args.tasks and args.windows:
        raise UsageError("--windows is for the loss on held-out text; expected no --tasks beside it")
    given = [word for word in ("limit", "fewshot", "batch") if getattr(args, word) is not None]
    if given and not args.tasks:
        raise UsageError(f"--{given[0]} is for downstream tasks; expected --tasks beside it")


def eval_tasks(args: argparse.Namespace) -> None:
    """Scores runs on tasks, records the scores in their folders, and prints them."""
    from ratrain.storage.folder import find_run
    from ratrain.tasks.source import open_tasks, require_harness

    require_harness()
    runs = {_name(run, args.out): run for run in (find_run(name, args.out) for name in args.run)}
    tasks = open_tasks(args.tasks, limit=args.limit, fewshot=args.fewshot)
    for task in tasks:
        if args.fewshot is not None and task.fewshot != args.fewshot:
            _warn(f"{task.name}: has {task.fewshot} examples by its definition, not {args.fewshot}")
    found = {name: _score(run, tasks, args) for name, run in runs.items()}
    if args.json:
        print_line(_record(found))
        return
    print(table(score_rows(found)))
    for line in _notes(next(iter(found.values()))):
        print(line)


def _name(run: Path, out: Path) -> str:
    return str(run.relative_to(out)) if run.is_relative_to(out) else str(run)


def _score(run: Path, tasks: Sequence[Any], args: argparse.Namespace) -> list[TaskScored]:
    from ratrain.tasks.harness import score_run

    progress = _Progress(_name(run, args.out))
    found = score_run(run, tasks, device=args.device, batch=args.batch, warn=_warn, on_answers=progress)
    progress.clear()
    return found


class _Progress:
    """Shows the answers so far in one line of a terminal; elsewhere nothing."""

    def __init__(self, run: str):
        self._run, self._stream, self._counts = run, sys.stderr, {}  # the stream is replaced while lm_eval works

    def __call__(self, task: str, answers: int) -> None:
        self._counts[task] = self._counts.get(task, 0) + answers
        self._write(f"{self._run}: {task}, {self._counts[task]:,} answers")

    def clear(self) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        if self._stream.isatty():
            print(f"\r{text}\x1b[K", end="", file=self._stream, flush=True)


def score_rows(found: Mapping[str, Sequence[TaskScored]]) -> list[tuple[str, ...]]:
    """Returns a table: a row for each metric of each task and run, with the difference to the first run."""
    from ratrain.tasks.compare import against, described

    several = len(found) > 1
    head = ("task", "metric", "run", "step", "value", "standard error", "n")
    rows: list[tuple[str, ...]] = [(*head, *(("- first run", "its error") if several else ()))]
    first, *_ = found.values()
    for at, base in enumerate(first):
        for metric, of_base in base.scores.items():
            for name, tasks in found.items():
                task, label, *figures = described(tasks[at], metric)
                change = against(of_base, tasks[at].scores[metric]) if tasks is not first else None
                versus = ("", "") if tasks is first else _versus(change)
                rows.append((task, label, name, f"{tasks[at].step:,}", *figures, *(versus if several else ())))
    return rows


def _versus(change: Any) -> tuple[str, str]:
    return (f"{change.value:+.4f} {change.unit}".rstrip(), f"{change.se:.4f}") if change else ("-", "-")


def _notes(tasks: Sequence[TaskScored]) -> list[str]:
    """Returns the facts that a quoted score needs, and a warning if it is none to quote."""
    digests = ", ".join(f"{one.task} {one.digest[:16]} ({one.fewshot} examples)" for one in tasks)
    lines = [f"lm-eval {tasks[0].harness}; {digests}"]
    limited = [f"{t.task} {t.documents:,} of {t.available:,}" for t in tasks if t.documents < t.available]
    if limited:
        lines.append(f"limited, for a trial and not to be quoted: {', '.join(limited)} documents")
    return lines


def _record(found: Mapping[str, Sequence[TaskScored]]) -> dict[str, Any]:
    """Returns the scores by run and task, with the paired differences to the first run."""
    from ratrain.tasks.compare import against

    first, *_ = found.values()
    told: dict[str, Any] = {}
    for name, tasks in found.items():
        told[name] = {}
        for base, scored in zip(first, tasks, strict=True):
            record = scored.record()
            record["limited"] = scored.documents < scored.available
            for metric, score in record["scores"].items():
                change = against(base.scores[metric], scored.scores[metric]) if tasks is not first else None
                score["difference"] = change and {"value": change.value, "se": change.se, "unit": change.unit}
            told[name][scored.task] = record
    return told


def _warn(message: str) -> None:
    print(f"ratrain: {message}", file=sys.stderr)
