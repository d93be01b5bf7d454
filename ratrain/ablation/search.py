"""The ledger of a search: how many ideas have been tried against a baseline, and the share of alpha for the next ones.

A search tries one idea after another against the same baseline, and each trial has a chance of a false claim. The ideas
k to k + n - 1 of a search share alpha (1/k - 1/(k + n)). The shares of all ideas, however many follow, add up to alpha
(alpha spending; Foster & Stine 2008, JRSS B 70(2); Tian & Ramdas 2021, Statistical Methods in Medical Research 30(4)).
An only idea has half of it, the hundredth a ten-thousandth. A study that is no trial may begin a search: it has spent
an alpha of its own, and its n arms count as the first n ideas.

`ledger-<recipe>.jsonl` in the folder of studies has a line per trial, the recipe being the baseline's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ratrain.ablation.record import read_study
from ratrain.atomic import write_file
from ratrain.errors import CannotCreateError, DataError, MissingError, UsageError
from ratrain.lock import lock


@dataclass(frozen=True)
class Entry:
    """One trial: its study, the study that its search began with, the number of ideas before it, and of its own."""

    study: str
    search: str
    before: int
    ideas: int

    @property
    def share(self) -> float:
        """The trial's share of alpha."""
        first = self.before + 1
        return 1 / first - 1 / (first + self.ideas)


@dataclass
class Ledger:
    """The trials against one baseline, in the order of their plans."""

    file: Path
    entries: list[Entry]

    def next(self, study: str, ideas: int, *, after: str | None) -> Entry:
        """Returns the entry of a trial: that on record if there is one, else the next of the search of study `after`,
        or the first of a search of its own.

        `after` is the name of a study or the path of its folder. Raises UsageError if the trial is on record in another
        search, and MissingError if `after` is no study against this baseline.
        """
        after = None if after is None else Path(after).name
        if after == "":
            raise UsageError("--after: is empty; expected the name of an earlier study of this search")
        known = next((entry for entry in self.entries if entry.study == study), None) or self._recorded(study)
        if known is None and after is None:
            return Entry(study, study, 0, ideas)
        search, begun = self._search_of(after) if after is not None else ("", 0)
        if known:
            if after is not None and search != known.search:
                message = f"{study} is on record as idea {known.before + 1} of the search of {known.search}"
                raise UsageError(f"--after {after}: {message}")
            return known
        return Entry(
            study, search, max([begun, *(e.before + e.ideas for e in self.entries if e.search == search)]), ideas
        )

    def _recorded(self, study: str) -> Entry | None:
        """Returns the entry of a trial by the plan in its folder; None without one."""
        try:
            plan = read_study(self.file.parent / study).plan
        except (MissingError, DataError):
            return None
        return Entry(study, plan.search, plan.before, len(plan.of_role("arm"))) if plan.search else None

    def _search_of(self, study: str) -> tuple[str, int]:
        """Returns the search of a study, and the number of ideas up to it; the arms of a study that is no trial count
        as ideas. Raises MissingError."""
        if known := next((entry for entry in self.entries if entry.study == study), None):
            return known.search, known.before + known.ideas
        try:
            plan = read_study(self.file.parent / study).now
        except (MissingError, DataError) as error:
            raise MissingError(f"--after {study}: {error}") from error
        if not self.file.name.startswith(f"ledger-{plan.base.recipe[:8]}"):
            raise MissingError(f"--after {study}: its baseline, {plan.base.name}, is another one than this trial's")
        if known := self._recorded(study):
            return known.search, known.before + known.ideas
        return study, len([arm for arm in plan.of_role("arm") if arm.twin == "none"])

    def add(self, entry: Entry) -> None:
        """Writes the entry, unless it is there."""
        if entry not in self.entries:
            self.entries.append(entry)
            self._write()

    def remove(self, entry: Entry) -> None:
        """Takes an entry out whose plan was refused: it has claimed nothing."""
        self.entries.remove(entry)
        if self.entries:
            self._write()
        else:
            self.file.unlink()

    def _write(self) -> None:
        write_file(self.file, [json.dumps(asdict(each)).encode() + b"\n" for each in self.entries])


@contextmanager
def ledger(studies: Path, recipe: str) -> Iterator[Ledger]:
    """Yields the ledger of the baseline with this recipe; another process waits meanwhile.

    Raises DataError if the file holds lines that ratrain did not write, CannotCreateError if it cannot be written.
    """
    file = studies / f"ledger-{recipe[:8]}.jsonl"
    try:
        studies.mkdir(parents=True, exist_ok=True)
        descriptor = lock(file.with_suffix(".lock"), wait=None)
    except OSError as error:
        raise CannotCreateError(f"{file}: cannot be written: {error.strerror}; choose another --out") from error
    try:
        yield Ledger(file, _read(file))
    finally:
        os.close(descriptor)


def _read(file: Path) -> list[Entry]:
    """Reads the entries. Raises DataError."""
    entries = []
    try:
        for line in file.read_text().splitlines():
            entries.append(entry := Entry(**json.loads(line)))
            if not (entry.before >= 0 and entry.ideas >= 1 and isinstance(entry.study + entry.search, str)):
                raise ValueError(f"{entry}")
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:  # other bytes than UTF-8 are a ValueError too
        raise DataError(f"{file}: holds a line that ratrain did not write: {error}") from error
    return entries
