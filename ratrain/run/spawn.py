"""`--devices N`: runs the same command in N processes of one machine, under torch's launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import psutil
import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ratrain.errors import Exit, UnavailableError, UsageError
from ratrain.machine.signals import GRACE
from ratrain.storage.folder import RunFolder


def spawn(argv: Sequence[str], count: int, *, device: str, folder: RunFolder) -> int:
    """Runs `ratrain argv` in `count` processes; returns the exit code that a single process would return.

    Raises UnavailableError if there are too few GPUs, UsageError if `device` names a single one.
    """
    _check_devices(count, device)
    # by default each process would start a thread per core
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the process that fails first prints its own error
    # torch 2.11 has no such option and always waits 30 s
    patience: dict[str, Any] = (
        {"shutdown_timeout": GRACE} if "shutdown_timeout" in LaunchConfig.__dataclass_fields__ else {}
    )
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle="SIGTERM,SIGHUP,SIGUSR1",
        **patience,
    )
    signal.signal(signal.SIGINT, _interrupt())
    try:
        elastic_launch(config, sys.executable)("-m", "ratrain", *argv)
    except ChildFailedError as error:
        return _first_to_fail(error)
    except SignalException:  # the signal was passed on, and all processes have ended
        state = folder.read_state()
        ends = {"done": Exit.DONE, "preempted": Exit.PREEMPTED, "diverged": Exit.DIVERGED}
        return ends.get(str(state.get("status")), Exit.BUG) if "exit" not in state else int(state["exit"])
    return Exit.DONE


def _check_devices(count: int, device: str) -> None:
    if ":" in device:
        raise UsageError(
            f"--devices {count} --device {device}: each process takes its own device; expected --device cuda or cpu"
        )
    gpus = torch.cuda.device_count()
    if (device == "cuda" or (device == "auto" and gpus)) and gpus < count:
        raise UnavailableError(f"--devices {count}: this machine has {gpus} GPU(s); --device cpu trains without")


def _first_to_fail(error: ChildFailedError) -> int:
    """Returns the exit code of the first process that failed by itself: others are killed, or exit as UNAVAILABLE."""
    by_itself = sorted(
        error.failures.values(), key=lambda f: (f.exitcode < 0, f.exitcode == Exit.UNAVAILABLE, f.timestamp)
    )
    code = by_itself[0].exitcode
    return 128 - code if code < 0 else code  # as a shell reports a signal


def _interrupt() -> Callable[[int, FrameType | None], None]:
    """Returns a handler of SIGINT: the first one goes to all processes, so that the run is saved; the second kills."""
    seen: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if seen:
            for process in psutil.Process().children(recursive=True):
                process.kill()
            os._exit(Exit.INTERRUPTED)
        seen.append(number)
        raise SignalException("interrupted", sigval=signal.Signals(number))

    return handle
