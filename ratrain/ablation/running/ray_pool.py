"""Runs the tasks of a study on a Ray cluster (ray.io), whose machines share the disk of the runs.

Each run is a Ray task. Ray starts it again on another machine if its own is lost, and it goes on from its last
checkpoint. Nothing is sent back but its exit code: all else is in the run's folder.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from ratrain.ablation.arms import Task
from ratrain.ablation.running.pool import Began, Ended, Published, signals
from ratrain.errors import Exit, UnavailableError
from ratrain.run.start import Launch
from ratrain.storage.folder import RunFolder

_RETRIES = 3  # after the loss of a worker or its machine; each resumes from the last checkpoint
_LOCKED = 60  # seconds for which a run waits for an earlier worker to leave its folder


@dataclass
class RayPool:
    """Runs tasks on the cluster at `address`, or on a new one of this machine; as many at a time as it has room for.

    A run takes a CPU core and, with `gpus_per_run`, a GPU. After the first SIGINT or SIGTERM every run saves and
    ends; a second SIGINT ends this process, and Ray ends its tasks.
    """

    launch: Launch
    devices: Sequence[str]
    on_message: Callable[[Began | Published | Ended], None]
    address: str | None = None
    gpus_per_run: int = 0
    device: str = "auto"
    asked: bool = False
    _tasks: dict[Any, Task] = field(default_factory=dict)  # by reference to its result
    _ray: Any = None

    def run(self, tasks: Sequence[Task]) -> None:
        """Runs every task to its end, or until a signal stops the pool. Raises UnavailableError without a cluster."""
        ray = self._ray = _connected(self.address)
        needs = {"num_cpus": 1, "num_gpus": self.gpus_per_run, "max_retries": _RETRIES, "retry_exceptions": False}
        out = self.launch.out.absolute()
        for task in tasks if self.launch.fresh else ():  # here and once: a task may be started again
            RunFolder(out / task.folder).move_aside()
        work, launch = ray.remote(**needs)(_work), replace(self.launch, out=out, device=self.device, fresh=False)
        with signals(self._stop):
            for task in tasks:
                self._tasks[work.remote(task, launch, str(Path.cwd()), socket.gethostname())] = task
                self.on_message(Began(task))
            while self._tasks:
                ended, _ = ray.wait(list(self._tasks), num_returns=1, timeout=1.0)
                for one in ended:
                    self._end(ray, one)

    def _end(self, ray: Any, one: Any) -> None:
        task = self._tasks.pop(one)
        try:
            code, reason, seconds = ray.get(one)
        except ray.exceptions.TaskCancelledError:
            code, reason, seconds = Exit.PREEMPTED, "stopped before it began", 0.0
        except ray.exceptions.RayError as error:
            code, reason, seconds = Exit.GAVE_UP, f"its worker was lost: {str(error).splitlines()[0]}", 0.0
        self.on_message(Ended(task, code, reason, seconds))

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            os._exit(Exit.INTERRUPTED)
        self.asked = True
        for one in list(self._tasks):
            self._ray.cancel(one)  # SIGINT to a running one, which saves; one that waits is taken from the queue


def require() -> None:
    """Raises UnavailableError if Ray is not installed."""
    if find_spec("ray") is None:
        raise UnavailableError("--pool ray: Ray is not installed; pip install 'ratrain[ray]'")


def _connected(address: str | None) -> Any:
    """Returns the module ray, connected to a cluster. Raises UnavailableError."""
    require()
    ray = import_module("ray")
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            place = f"--address {address}" if address else "Ray"
            raise UnavailableError(f"{place}: no cluster answers: {str(error).splitlines()[0]}") from error
    return ray


def _work(task: Task, launch: Launch, place: str, host: str) -> tuple[int, str, float]:
    """Trains or resumes a run on a worker; returns exit code, reason and seconds."""
    began = time.monotonic()
    try:
        os.chdir(place)
    except OSError:
        what = f"{place} of {host} is not seen on {socket.gethostname()}; start the study on a shared disk"
        return Exit.MISSING, what, 0.0
    import torch

    from ratrain.ablation.running.worker import carry_out
    from ratrain.machine.device import pick_device

    if pick_device(launch.device).type == "cpu":
        torch.set_num_threads(1)  # runs share the CPU, and the bits of a result depend on the thread count
    code, reason = carry_out(task, launch, lambda event: None)
    while code == Exit.CANNOT_CREATE and time.monotonic() - began < _LOCKED:  # a worker that was lost ends slowly
        time.sleep(1.0)
        code, reason = carry_out(task, launch, lambda event: None)
    return code, reason, time.monotonic() - began
