"""One run of a study in a process of its own, forked from a server that has torch loaded already."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.connection import Connection

import torch

from ratrain.ablation.arms import Task
from ratrain.errors import Exit, RatrainError
from ratrain.events import Compiled, Emit, Evaluated, Event, RunEnded, RunStarted, Window
from ratrain.run.launch import train
from ratrain.run.start import AlreadyDone, Launch
from ratrain.storage.checkpoint import thin
from ratrain.storage.folder import RunFolder, listed

_TOLD = (Compiled, Window, Evaluated, RunEnded)  # what the table of the study shows


def work(task: Task, launch: Launch, pipe: Connection, lifeline: Connection) -> None:
    """Trains or goes on; sends events, then the exit code and what there is to say of it."""
    threading.Thread(target=_leave_with, args=(lifeline,), daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the run's own log.txt has it all
    if launch.device == "cpu":
        torch.set_num_threads(1)  # runs stand side by side, and the bits of a run depend on its threads

    def tell(event: Event) -> None:
        if isinstance(event, _TOLD):
            pipe.send(event)

    pipe.send(_ran(task, launch, tell))


def _ran(task: Task, launch: Launch, tell: Emit) -> tuple[int, str]:
    try:
        manifest = task.manifest()
        folder = launch.folder(manifest)
        ours = task.thin and (launch.fresh or not listed(folder.checkpoints))

        def sink(event: Event) -> None:
            if ours and isinstance(event, RunStarted):
                (folder.path / _MARK).touch()
            tell(event)

        train(manifest, task.source, launch, sink=sink)
        _thin(folder)
    except AlreadyDone as done:
        _thin(RunFolder(done.path))
        return Exit.DONE, ""
    except RatrainError as error:
        return error.exit, str(error)
    except KeyboardInterrupt:
        return Exit.PREEMPTED, "interrupted"
    except Exception as error:
        return Exit.BUG, f"{type(error).__name__}: {error}"
    return Exit.DONE, ""


_MARK = "keep-weights"  # in the folder of a run that a study began: others keep what they have


def _thin(folder: RunFolder) -> None:
    """Of a finished run that a study began, only the last weights stay."""
    if (folder.path / _MARK).exists():
        with folder.open():
            thin(folder.checkpoints)
            (folder.path / _MARK).unlink()


def _leave_with(lifeline: Connection) -> None:
    """Waits for the end of the process that asked for the run; then the run is to be saved, and to end."""
    try:
        lifeline.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
