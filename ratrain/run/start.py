"""Checks whether a run may start, from its launch options and the content of its folder. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain.config.identity import run_folder
from ratrain.config.resolve import steps_total
from ratrain.config.schema import Manifest
from ratrain.errors import Exit, Fault, ManifestError, MissingError, UsageError
from ratrain.storage.code_digests import changed_files, code_digests, some
from ratrain.storage.folder import RunFolder, listed

if TYPE_CHECKING:
    from ratrain.storage.branch import Branch


@dataclass(frozen=True)
class Launch:
    """The launch options of a run: place, device, resumption and branch; only `branch` is part of its identity."""

    out: Path = Path("runs")
    device: str = "auto"
    resume: str = "auto"  # auto, must, never
    fresh: bool = False
    accept_code_change: bool = False
    branch: Branch | None = None

    def folder(self, manifest: Manifest) -> RunFolder:
        """Returns the folder of a run of the manifest."""
        return RunFolder(self.out / run_folder(manifest, self.branch.parent if self.branch else None))


class AlreadyDone(Exception):  # noqa: N818 - not an error: there is nothing left to do
    """The run in `path` has reached the end of its budget with validation loss `loss`."""

    exit = Exit.DONE

    def __init__(self, path: Path, loss: float | None):
        super().__init__(f"{path}: this run is done" + ("" if loss is None else f" (validation loss {loss:.4f})"))
        self.path, self.loss = path, loss


def may_start(folder: RunFolder, manifest: Manifest, launch: Launch) -> list[str]:
    """Checks the folder before anything is built or written; returns the source files changed since the run trained.

    Raises AlreadyDone for a run at the end of its budget, ManifestError for a run under changed code unless that is
    accepted, and MissingError or UsageError if `launch.resume` does not allow the start.
    """
    changed = changed_code(folder, manifest)
    if changed and not launch.accept_code_change:
        message = f"changed since {folder.path} trained with it; --fresh starts over, --accept-code-change continues"
        raise ManifestError([Fault(some(changed), "", message)])
    _check_resume(folder, manifest, launch.resume)
    return changed


def changed_code(folder: RunFolder, manifest: Manifest) -> list[str]:
    """Returns the source files that changed since the run last trained; none without a checkpoint."""
    try:
        before = json.loads((folder.path / "code.json").read_text())
    except (OSError, ValueError):
        return []
    return changed_files(before, code_digests(manifest)) if listed(folder.checkpoints) else []


def _check_resume(folder: RunFolder, manifest: Manifest, resume: str) -> None:
    """Raises MissingError or UsageError if `resume` does not allow the start, AlreadyDone if the budget is used."""
    found, state = listed(folder.checkpoints), folder.read_state()
    if resume == "must" and not found:
        raise MissingError(f"{folder.checkpoints}: --resume must, but there is no checkpoint")
    if resume == "never" and found:
        raise UsageError(f"{folder.path}: --resume never, but it holds checkpoints; --fresh moves them aside")
    # with a constant schedule the budget may be extended
    if state.get("status") == "done" and found and state.get("step", 0) >= (steps_total(manifest) or 0):
        raise AlreadyDone(folder.path, state.get("loss"))
