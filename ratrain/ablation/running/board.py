"""Progress display of a running study: a live table on a terminal, otherwise a line per finished run."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from ratrain.ablation.arms import Task
from ratrain.ablation.plan import Plan
from ratrain.ablation.running.pool import Began, Ended, Published
from ratrain.errors import Exit
from ratrain.events import Evaluated, Window

if TYPE_CHECKING:
    from rich.table import Table

_ENDS = {Exit.DONE: "done", Exit.PREEMPTED: "stopped", Exit.DIVERGED: "diverged"}


class Standing:
    """The progress of every run of the study, updated from the messages of the pool."""

    def __init__(self, plan: Plan):
        self.name, self.base, self.stage = plan.name, plan.base.name, ""
        self.arms: dict[str, list[Task]] = {}
        self.loss: dict[str, float] = {}  # of the last evaluation, by folder
        self.spent: dict[str, float] = {}  # fraction of the budget, by folder
        self.code: dict[str, int] = {}
        self.total, self.known, self.began = 0, 0.0, time.monotonic()

    def add(self, stage: str, tasks: Sequence[Task], done: Mapping[str, float]) -> None:
        """Begins a stage, "" for the main one, with its runs and the losses of the finished ones, by folder."""
        self.stage = f"{stage}, " if stage else ""
        known = {(task.arm, task.folder) for of in self.arms.values() for task in of}
        for task in tasks:
            if (task.arm, task.folder) not in known:
                self.arms.setdefault(task.arm, []).append(task)
        self.total += len({task.folder for task in tasks} - {folder for _, folder in known})
        new = {folder: loss for folder, loss in done.items() if folder not in self.code}
        self.loss |= new
        self.spent |= dict.fromkeys(new, 1.0)
        self.code |= dict.fromkeys(new, Exit.DONE)
        self.known += len(new)

    def __call__(self, said: Began | Published | Ended) -> None:
        folder = said.task.folder
        if isinstance(said, Ended):
            self.code[folder] = said.code
        elif isinstance(said, Published) and isinstance(said.event, Window):
            self.spent[folder] = said.event.spent
        elif isinstance(said, Published) and isinstance(said.event, Evaluated):
            self.loss[folder] = said.event.loss

    @property
    def share(self) -> float:
        """The spent fraction of the whole study's budget."""
        return sum(self.spent.values()) / max(1, self.total)

    @property
    def eta(self) -> float | None:
        """Estimated seconds to the end at the speed so far; None until 0.05 of a run is trained."""
        moved = sum(self.spent.values()) - self.known
        left = self.total - sum(self.spent.values())
        return left * (time.monotonic() - self.began) / moved if moved > 0.05 else None

    def difference(self, arm: str) -> str:
        """Formats the mean difference of validation losses to the baseline's, over the seeds that both finished."""
        base = {(task.init, task.data): task.folder for task in self.arms.get(self.base, ())}
        pairs = [(task.folder, base.get((task.init, task.data), "")) for task in self.arms[arm]]
        both = [self.loss[a] - self.loss[b] for a, b in pairs if self.code.get(a) == self.code.get(b) == Exit.DONE]
        return f"{statistics.fmean(both):+.4f}" if both and arm != self.base else ""

    def marks(self, arm: str) -> str:
        """Formats a word per seed: the loss of a finished run, the progress of a running one, or the kind of end."""
        return "  ".join(f"{self._mark(task):>6}" for task in self.arms[arm])

    def _mark(self, task: Task) -> str:
        if (code := self.code.get(task.folder)) is not None:
            return f"{self.loss[task.folder]:.4f}" if code == Exit.DONE else _ENDS.get(Exit(code), f"exit {code}")
        return f"{100 * self.spent[task.folder]:.0f} %" if task.folder in self.spent else "."


def line_of(said: Ended, standing: Standing) -> str:
    """Formats the end of a run as a line."""
    task, loss = said.task, standing.loss.get(said.task.folder)
    seed = f"s{task.init}" if task.init == task.data else f"s{task.init}-{task.data}"
    done = sum(code == Exit.DONE for code in standing.code.values())
    if said.code == Exit.DONE:
        what = "done" if loss is None else f"validation loss {loss:.4f}"
    elif said.code == Exit.PREEMPTED and said.reason:
        what = said.reason  # the reason already states that the run was stopped
    else:
        end = _ENDS.get(Exit(said.code), f"failed with exit code {said.code}")
        what = f"{end}, {said.reason}" if said.reason else end
    eta = "" if standing.eta is None or standing.eta < 60 else f"  ETA {standing.eta / 60:.0f} min"
    return f"[{done}/{standing.total}] {task.arm} {seed}: {what}{eta}"


class Board:
    """The live table; lines of runs that did not finish scroll above it."""

    def __init__(self, standing: Standing):
        from rich.console import Console
        from rich.live import Live

        self._standing, self._console = standing, Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True, get_renderable=self._table)
        self._live.start()

    def __call__(self, said: Began | Published | Ended) -> None:
        self._standing(said)
        if isinstance(said, Ended) and said.code != Exit.DONE:
            self._console.print(line_of(said, self._standing), markup=False, style="yellow")

    def _table(self) -> Table:
        from rich.table import Table

        s = self._standing
        eta = "" if s.eta is None else f", ETA {s.eta / 60:.0f} min"
        table = Table(title=f"{s.name}: {s.stage}{100 * s.share:.0f} %{eta}", title_justify="left", box=None)
        for head in ("arm", "by seed", f"vs {s.base}"):
            table.add_column(head, no_wrap=True)
        room = max(4, self._console.height - 4)
        names = list(s.arms)
        busy = [name for name in names if any(task.folder not in s.code for task in s.arms[name])]
        shown = names if len(names) <= room else busy[:room]  # only unfinished arms if the table is too high
        for name in shown:
            table.add_row(name, s.marks(name), s.difference(name))
        if len(shown) < len(names):
            table.add_row(f"... {len(names) - len(shown)} more", "", "")
        return table

    def say(self, line: str) -> None:
        self._console.print(line, markup=False)

    def close(self) -> None:
        self._live.stop()


class LineBoard:
    """Prints a line for every run that ends."""

    def __init__(self, standing: Standing, out: TextIO):
        self._standing, self._out = standing, out

    def __call__(self, said: Began | Published | Ended) -> None:
        self._standing(said)
        if isinstance(said, Ended):
            self.say(line_of(said, self._standing))

    def say(self, line: str) -> None:
        print(line, file=self._out, flush=True)

    def close(self) -> None:
        pass


def board(standing: Standing) -> Board | LineBoard:
    """Returns a live table if stdout is a terminal, else a line board; TERM=dumb and CI=true also select lines."""
    plain = os.environ.get("TERM") == "dumb" or os.environ.get("CI") == "true"
    return Board(standing) if sys.stdout.isatty() and not plain else LineBoard(standing, sys.stdout)
