"""Trackers that file runs under projects: Weights & Biases, and Trackio."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import secrets
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import tomli

from ratrain.atomic import write_file
from ratrain.config.schema import LogSection
from ratrain.events import Event, RunEnded, RunStarted, Sampled
from ratrain.sinks.tracker import PATIENCE, Tracker, points


class WandB(Tracker):
    """A run of project ratrain (or WANDB_PROJECT), grouped by study or recipe; WANDB_MODE=offline is wandb's own.

    What wandb has received cannot be taken back, so points are drawn over a `step` of ours: after a kill, those
    between the checkpoint and the kill are sent again and lie upon the first.
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

    def abandon(self) -> None:
        with contextlib.suppress(BaseException):
            for child in psutil.Process().children():
                if child.name() == "wandb-core":  # outlives this process, its output too, while a server is away
                    child.kill()
            self._wandb.teardown()  # else Python calls it at exit, and shows what it raises for want of the child

    def _open(self, started: RunStarted) -> None:
        folder = Path(started.folder)
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # without a network, it holds up the exit of Python
        settings = self._wandb.Settings(
            silent=True, console="off", finish_timeout=0.8 * PATIENCE, finish_timeout_raises=True
        )
        self._wandb.setup(settings)  # silent before init: it would ask at the terminal who you are
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
    """A run in Trackio's data base, on this machine unless its environment (TRACKIO_SPACE_ID) says otherwise.

    As with wandb, the points between a checkpoint and a kill are there twice. It knows runs by their names alone, so
    a name ends in what tells this folder from others.
    """

    name = "trackio"

    def __init__(self, log: LogSection):
        self._trackio: Any = importlib.import_module("trackio")
        for module in ("trackio", "trackio.run", "trackio.utils"):  # it chats on stdout, where --json has its lines
            if module in sys.modules:
                vars(sys.modules[module])["print"] = lambda *words, **options: None
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

    def abandon(self) -> None:
        with contextlib.suppress(BaseException):
            atexit.unregister(self._trackio._cleanup_current_run)  # which would wait for a server that is away

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
            auto_log_cpu=False,  # points() has it
            auto_log_gpu=False,
        )
        self.place = f"trackio show --project {project}"


def _name(log: LogSection, started: RunStarted) -> str:
    return log.run_name or f"{started.id}/{Path(started.folder).name}"


def _config(started: RunStarted) -> dict[str, Any]:
    return {**asdict(started), **tomli.loads((Path(started.folder) / "resolved.toml").read_text())}


def _own_id(file: Path, run_hash: str) -> str:
    """The run hash, and what tells this folder from one that --fresh moved aside or that another machine holds."""
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        write_file(file, [f"{run_hash[:16]}-{secrets.token_hex(3)}".encode()])
    return file.read_text()
