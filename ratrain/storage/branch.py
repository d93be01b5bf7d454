"""`--branch RUN@STEP`: a run that starts from a checkpoint of another, as WSD's decays do (arXiv:2405.18392)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ratrain.config.identity import Parent
from ratrain.errors import MissingError
from ratrain.storage.checkpoint import load
from ratrain.storage.folder import find_run, listed


@dataclass(frozen=True)
class Branch:
    """The start of a branched run: the checkpoint, the name of its run, and the Parent that enters the run hash."""

    checkpoint: Path
    run: str
    parent: Parent

    def record(self) -> dict[str, str | int]:
        """Returns the content of parent.json in the folder of the new run."""
        return {"run": self.run, "run_hash": self.parent.run_hash, "step": self.parent.step}


def find_branch(word: str, root: Path) -> Branch:
    """Returns the branch for `RUN@STEP`, or for the newest checkpoint without `@STEP`; runs are searched below `root`.

    Raises MissingError if run or checkpoint is missing, UsageError if several runs match, and DataError if the
    checkpoint does not verify.
    """
    name, _, step = word.rpartition("@")
    if not name or not step.isdecimal():
        name, step = word, ""
    run = find_run(name, root)
    found = {int(path.name[5:]): path for path in listed(run / "checkpoints")}
    at = int(step) if step else max(found, default=0)
    if at not in found:
        there = ", ".join(map(str, sorted(found))) or "none"
        raise MissingError(f"{run}: has no checkpoint of step {at}, it keeps {there}; checkpoint.keep keeps more")
    inside = run.is_relative_to(root)
    state = load(found[at]).state
    return Branch(found[at], str(run.relative_to(root) if inside else run), Parent(state["run_hash"], at))
