"""`--branch RUN@STEP`: a run that begins at a checkpoint of another, as WSD's decays do (arXiv:2405.18392)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ratrain.config.identity import Parent
from ratrain.errors import MissingError
from ratrain.storage.checkpoint import load
from ratrain.storage.folder import find_run, listed


@dataclass(frozen=True)
class Branch:
    """Where a run begins: the checkpoint, the run that it belongs to by name, and what makes it part of an identity."""

    checkpoint: Path
    run: str
    parent: Parent

    def record(self) -> dict[str, str | int]:
        """What is kept in the folder of the new run, as parent.json."""
        return {"run": self.run, "run_hash": self.parent.run_hash, "step": self.parent.step}


def find_branch(word: str, root: Path) -> Branch:
    """The checkpoint that `RUN@STEP` names, or the newest where there is no `@STEP`; runs are looked up below `root`.

    Raises MissingError, UsageError, and DataError where it does not verify.
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
