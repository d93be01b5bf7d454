"""Scores runs on tasks: lm_eval makes the requests and the metrics, the adapter answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ratrain.data.tokenizer import load_tokenizer
from ratrain.errors import DataError, RatrainError
from ratrain.events import Score, TaskScored
from ratrain.machine.device import pick_device
from ratrain.run.sample import load_step
from ratrain.statistics.documents import mean_of
from ratrain.storage.task_log import add_score, weights_of
from ratrain.tasks.source import OpenTask, heard, quiet, require_harness

_LONG = 160  # characters of a warning of lm_eval; some hold a whole document
_DRAWS = 200  # of documents, for the error of a metric that is no mean over them


def score_run(
    run: Path,
    tasks: Sequence[OpenTask],
    *,
    device: str,
    batch: int | None = None,
    warn: Callable[[str], None],
    on_answers: Callable[[str, int], None] = lambda task, answers: None,
) -> list[TaskScored]:
    """Scores the newest weights of a run on tasks, and adds the scores to the run's tasks.jsonl.

    Weights and arithmetic are fp32, as in `ratrain sample`. `batch` is the number of requests in a pass, by default the
    run's micro-batch. `on_answers` receives the task and how many answers the model has given since the last call. A
    folder that cannot be written is warned about. Raises MissingError without a checkpoint, and
    DataError if none verifies, if the logits are not finite, or if a task's own code fails.
    """
    from ratrain.tasks.adapter import Adapter

    version = require_harness()
    manifest, model, step = load_step(run, device=pick_device(device), warn=warn)
    if manifest.data.is_recall:
        raise DataError(f"{run}: learned {manifest.data.source!r}, not a text; expected a run that was trained on text")
    weights = weights_of(run, step)
    told: list[str] = []  # held back while lm_eval's own messages are hidden
    found: list[TaskScored] = []
    adapter = Adapter(
        model, load_tokenizer(manifest.data.tokenizer), batch=batch or manifest.train.micro_batch, warn=told.append
    )
    if manifest.eval.ema:
        warn(f"{run}: in training, averaged weights are evaluated (eval.ema); here those of step {step} alone")
    for task in tasks:
        begun, adapter.cut = time.monotonic(), 0
        adapter.done = partial(on_answers, task.name)
        with heard() as warnings:
            scores = _scores(adapter, task, run)
        more = f" (and {len(warnings) - 1:,} more warnings)" if len(warnings) > 1 else ""
        told += [f"lm-eval warns: {warning[:_LONG]}{more}" for warning in warnings[:1]]
        told += _without_value(task, scores)
        found.append(
            TaskScored(
                step, weights[1] if weights else "", task.name, task.digest, version, task.documents, task.available,
                task.fewshot, adapter.cut, scores,
            )
        )  # fmt: skip
        try:
            add_score(run, found[-1], seconds=time.monotonic() - begun)
        except (OSError, RatrainError) as error:
            told.append(f"the score is not recorded: {error}")
        for message in told:
            warn(f"{run}: {task.name}: {message}")
        told.clear()
    return found


def _without_value(task: OpenTask, scores: dict[str, Score]) -> list[str]:
    """Returns a message that names the metrics of a task that have no value; empty if there are none."""
    known = {label.split(", ")[0] for label in scores}
    lacking = ", ".join(name for name in task.task.aggregation() if name not in known)
    return [f"no value came of its metric {lacking}; is it one of lm-eval's?"] if lacking else []


def _scores(adapter: Any, task: OpenTask, run: Path) -> dict[str, Score]:
    """Returns the metrics of a task, by name, and by filter if it has several."""
    from lm_eval.evaluator import evaluate

    task.rewind()
    try:
        with quiet():
            found: Any = evaluate(adapter, {"tasks": {task.name: task.task}}, limit=task.limit, bootstrap_iters=0)
    except DataError as error:  # of the adapter
        raise DataError(f"{task.name}: {error}") from error
    except FloatingPointError as error:
        raise DataError(f"{run}: {error}: this run has diverged; lower schedule.lr and train it again") from error
    except Exception as error:  # of the task's own code
        told = " ".join(str(error).split())[:300]
        raise DataError(f"{task.name}: lm-eval cannot score it: {type(error).__name__}: {told}") from error
    values, better = found["results"][task.name], found["higher_is_better"][task.name]
    scores: dict[str, Score] = {}
    for key, value in values.items():
        metric, _, name = key.partition(",")
        if not name or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        documents = [one[metric] for one in found["samples"][task.name] if one["filter"] == name and metric in one]
        label = metric if name == "none" else f"{metric}, {name}"
        scores[label] = score_of(float(value), documents, task.task.aggregation().get(metric), bool(better.get(metric)))
    return scores


class _Additive(NamedTuple):
    """An aggregation that is a mean over documents on some scale; `split` maps a document to its sum and its count."""

    scale: str
    split: Callable[[Any], tuple[float, float]]


def additive(aggregation: Any) -> _Additive | None:
    """Returns how an aggregation of lm_eval is a mean over documents; None if it is none."""
    from lm_eval.api import metrics

    known = {
        metrics.mean: _Additive("mean", lambda x: (x, 1)),
        metrics.perplexity: _Additive("perplexity", lambda x: (-x, 1)),
        metrics.weighted_perplexity: _Additive("perplexity", lambda x: (-x[0], x[1])),
        metrics.bits_per_byte: _Additive("bits per byte", lambda x: (-x[0] / math.log(2), x[1])),
    }
    return known.get(aggregation)


def score_of(value: float, documents: Sequence[Any], aggregation: Any, higher: bool) -> Score:
    """Returns a metric with its standard error; `documents` holds lm_eval's values by document.

    The error of a mean, of a perplexity and of bits per byte is that of a ratio over documents (of its logarithm, times
    the perplexity); for any other metric documents are drawn anew.
    """
    kind = additive(aggregation)
    if kind is None:
        return Score(value, _drawn(documents, aggregation), higher)
    scale = kind.scale
    pairs = [(float(part), float(n)) for part, n in map(kind.split, documents) if n]  # an empty text has no bytes
    parts, weights = (tuple(of) for of in zip(*pairs, strict=True))
    se = mean_of(parts, weights).se
    se = se * value if scale == "perplexity" else se
    return Score(value, se if math.isfinite(se) else None, higher, scale, parts, weights)


def _drawn(documents: Sequence[Any], aggregation: Any) -> float | None:
    """Returns the standard deviation of the metric over documents drawn with replacement (the bootstrap)."""
    draws, generator = [], np.random.default_rng(0)
    if aggregation is None or len(documents) < 2:
        return None
    for _ in range(_DRAWS):
        rows = generator.integers(len(documents), size=len(documents))
        draws.append(float(aggregation([documents[row] for row in rows])))
    return float(np.std(draws, ddof=1))
