"""Scores of two models on the same documents, compared document by document."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ratrain.events import Score, TaskScored
from ratrain.statistics.documents import difference

_UNITS = {"mean": "", "perplexity": "nats", "bits per byte": "bits"}  # of differences: of log perplexities


@dataclass(frozen=True)
class Change:
    """A score minus another, and its standard error over documents; that of perplexities is of their logarithms."""

    value: float
    se: float
    unit: str


def against(base: Score, score: Score) -> Change | None:
    """Returns the paired difference of a score to a base's; None if they have no common documents to pair."""
    if not score.parts or score.weights != base.weights or score.scale != base.scale:
        return None
    found = difference(base.parts, score.parts, score.weights)
    return Change(found.value, found.se, unit_of(score))


def unit_of(score: Score) -> str:
    """Returns the unit of differences of a score; empty for a fraction."""
    return _UNITS.get(score.scale, "")


def level(score: Score) -> float:
    """Returns the score on the scale of its differences: the logarithm of a perplexity."""
    return math.log(score.value) if score.scale == "perplexity" else score.value


def number(value: float | None) -> str:
    """Formats a score or its error."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}" if abs(value) < 1e6 else f"{value:.4g}"


def described(scored: TaskScored, metric: str) -> tuple[str, str, str, str, str]:
    """Returns task, metric with the better direction, value, standard error, and documents, as text."""
    score = scored.scores[metric]
    limited = f" of {scored.available:,}" if scored.documents < scored.available else ""
    arrow = "↑" if score.higher_is_better else "↓"
    return scored.task, f"{metric} {arrow}", number(score.value), number(score.se), f"{scored.documents:,}{limited}"


def newest(scores: Iterable[TaskScored]) -> list[TaskScored]:
    """Returns the last score of each task with its number of examples and documents."""
    return list({(one.task, one.fewshot, one.documents): one for one in scores}.values())
