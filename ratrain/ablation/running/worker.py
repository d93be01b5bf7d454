"""Executes one run of a study in its own process, forked from a server that has already imported torch."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.connection import Connection

import torch

from ratrain.ablation.arms import Task
from ratrain.errors import Exit, RatrainError
from ratrain.events import Compiled, Emit, Evaluated, Event, RunEnded, RunStarted, Window
from ratrain.machine.distributed import launched_rank
from ratrain.run.launch import train
from ratrain.run.start import AlreadyDone, Launch
from ratrain.storage.checkpoint import thin
from ratrain.storage.folder import RunFolder, listed

_TOLD = (Compiled, Window, Evaluated, RunEnded)  # events that the live table of the study shows


def work(task: Task, launch: Launch, pipe: Connection, lifeline: Connection) -> None:
    """Trains or resumes the run; sends events through `pipe`, then the exit code and its reason."""
    threading.Thread(target=_leave_with, args=(lifeline,), daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # log.txt of the run holds the same output
    if launch.device == "cpu":
        torch.set_num_threads(1)  # runs share the CPU, and the bits of a result depend on the thread count

    def publish(event: Event) -> None:
        if isinstance(event, _TOLD):
            pipe.send(event)

    pipe.send(carry_out(task, launch, publish))


def carry_out(task: Task, launch: Launch, publish: Emit) -> tuple[int, str]:
    """Trains or resumes the run in this process; returns the exit code and its reason."""
    try:
        manifest = task.manifest()
        folder = launch.folder(manifest)
        ours = task.thin and (launch.fresh or not listed(folder.checkpoints))

        def sink(event: Event) -> None:
            if ours and isinstance(event, RunStarted):
                (folder.path / _MARK).touch()
            publish(event)

        train(manifest, task.source, launch, sink=sink)
        if launched_rank()[0] == 0:
            _thin(folder)
    except AlreadyDone as done:
        if launched_rank()[0] == 0:
            _thin(RunFolder(done.path))
        return Exit.DONE, ""
    except RatrainError as error:
        return error.exit, str(error)
    except KeyboardInterrupt:
        return Exit.PREEMPTED, "interrupted"
    except Exception as error:
        return Exit.BUG, f"{type(error).__name__}: {error}"
    return Exit.DONE, ""


_MARK = "keep-weights"  # marker file in the folder of a run that a study began; only marked runs are thinned


def _thin(folder: RunFolder) -> None:
    """Reduces the checkpoints of a finished run to its last weights, if a study began the run."""
    if (folder.path / _MARK).exists():
        with folder.open():
            thin(folder.checkpoints)
            (folder.path / _MARK).unlink()


def _leave_with(lifeline: Connection) -> None:
    """Waits for the end of the parent process, then sends SIGTERM to this one, so that the run saves and ends."""
    try:
        lifeline.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
