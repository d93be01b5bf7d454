"""The blocks of runs and the looks of a study with seeds as needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Block:
    """Runs between two looks of a study with seeds as needed: the baseline and these arms, up to `seeds` seeds each."""

    seeds: int
    arms: tuple[str, ...]


@dataclass(frozen=True)
class Look:
    """One look of a study with seeds as needed, after which it decides how to go on.

    `seeds` is the number of complete blocks, `arms` are those that ran in the last one. `share` is that of alpha's
    spending time, `spent` the amount of the budget's resource. `reach` is the number of seeds that the open arms can
    have within the budget. `words` are the verdicts that were given, `dropped` holds arms that were given up, `over`
    is the reason if the study ends with this look.
    """

    seeds: int
    arms: tuple[str, ...]
    share: float
    spent: float
    reach: int
    words: dict[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    over: str = ""

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Look:
        """Reads a recorded look; looks of earlier versions lack words."""
        facts = {field.name: event[field.name] for field in fields(cls) if field.name in event}
        return cls(**{**facts, "arms": tuple(event["arms"]), "dropped": tuple(event["dropped"])})


def following(looks: tuple[Look, ...], new: Look) -> tuple[Look, ...]:
    """Returns the looks with a new one. Raises ValueError for one that has no more seeds than the last, or a smaller
    share of alpha's time."""
    seeds, share = (looks[-1].seeds, looks[-1].share) if looks else (0, 0.0)
    if not (seeds < new.seeds and share <= new.share <= 1):
        raise ValueError(f"a look after {new.seeds} seeds at {new.share} follows one after {seeds} at {share}")
    return (*looks, new)
