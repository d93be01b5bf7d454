"""Trackers that group runs in projects: Weights & Biases, and Trackio. They run in the process of remote.py."""

from __future__ import annotations

import importlib
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli

from ratrain.atomic import write_file
from ratrain.config.schema import LogSection
from ratrain.events import Event, RunEnded, RunStarted, Sampled
from ratrain.sinks.tracker import PATIENCE, Tracker, points


class WandB(Tracker):
    """Logs a run to the project `log.project`, WANDB_PROJECT or "ratrain", grouped by study or recipe.

    wandb's own WANDB_MODE=offline applies. Points sent to wandb cannot be deleted, so they are plotted over a `step`
    metric of ours: after a kill the points since the last checkpoint are sent again and coincide with the first ones.
    """

    name = "wandb"

    def __init__(self, log: LogSection):
        self._wandb: Any = importlib.import_module("wandb")
        self._log = log
        self._run: Any = None
        self._exit_code = 1  # unless the run is done

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._open(event)
        elif isinstance(event, Sampled):
            self._run.log({"step": event.step, "sample": event.text})
        elif isinstance(event, RunEnded):
            self._exit_code = int(event.status != "done")
            if event.status == "preempted":
                self._run.mark_preempting()
        for step, values in points(event):
            self._run.log({"step": step, **values})

    def close(self) -> None:
        if self._run:
            self._run.finish(exit_code=self._exit_code)

    def _open(self, started: RunStarted) -> None:
        folder = Path(started.folder)
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # without a network it delays the exit of Python
        settings = self._wandb.Settings(
            silent=True, console="off", finish_timeout=0.8 * PATIENCE, finish_timeout_raises=True
        )
        self._wandb.setup(settings)  # silent before init, which would prompt for a login at the terminal
        self._run = self._wandb.init(
            project=self._log.project or os.environ.get("WANDB_PROJECT", "ratrain"),
            group=self._log.study or folder.parent.name,
            name=_name(self._log, started),
            id=_own_id(folder / "wandb" / "id", started.run_hash),
            resume="allow",
            dir=str(folder),
            config=_config(started),
            reinit="create_new",
            settings=settings,
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self.place = f"offline; wandb sync {folder}/wandb/offline-run-*" if self._run.offline else self._run.url or ""


class Trackio(Tracker):
    """Logs a run to Trackio's database, on this machine unless TRACKIO_SPACE_ID names a space.

    As with wandb, the points between a checkpoint and a kill are stored twice. Trackio identifies runs by name only, so
    the name ends in a suffix that is unique to the folder.
    """

    name = "trackio"

    def __init__(self, log: LogSection):
        self._trackio: Any = importlib.import_module("trackio")
        self._log = log
        self._run: Any = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._open(event)
        elif isinstance(event, Sampled):
            self._run.log({"sample": event.text}, step=event.step)
        for step, values in points(event):
            self._run.log(values, step=step)

    def close(self) -> None:
        if self._run:
            self._run.finish()

    def _open(self, started: RunStarted) -> None:
        folder, project = Path(started.folder), self._log.project or "ratrain"
        own = _own_id(folder / "trackio" / "id", started.run_hash)
        self._run = self._trackio.init(
            project=project,
            group=self._log.study or folder.parent.name,
            name=f"{_name(self._log, started)} {own[-6:]}",
            resume="allow",
            config=_config(started),
            embed=False,
            auto_log_cpu=False,  # points() includes it
            auto_log_gpu=False,
        )
        self.place = f"trackio show --project {project}"


def _name(log: LogSection, started: RunStarted) -> str:
    return log.run_name or f"{started.id}/{Path(started.folder).name}"


def _config(started: RunStarted) -> dict[str, Any]:
    return {**asdict(started), **tomli.loads((Path(started.folder) / "resolved.toml").read_text())}


def _own_id(file: Path, run_hash: str) -> str:
    """Returns the id in `file`, created on first use: the run hash and a random suffix.

    The suffix distinguishes this folder from one that --fresh moved aside, and from folders on other machines.
    """
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        write_file(file, [f"{run_hash[:16]}-{secrets.token_hex(3)}".encode()])
    return file.read_text()
