"""An arm of a measurement: a step in a process of its own, so that arms may have different trees, or programs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.compare import worker
from bench.compare.worker import ArmError

_PATIENCE = 10  # seconds a worker has to end by itself
_TOLD = 12  # lines of stderr that are passed on when a worker ends


class Arm(contextlib.AbstractContextManager["Arm"]):
    """A worker process. The first request waits until its step is made, compiled and warm.

    `make` is `module:function`; called with `arguments` (plain JSON) it returns a callable that takes one step.
    `ratrain` comes from the tree `source`, else from this one. A `device` among the arguments is the device that is
    timed. `environment` is added to this process's environment; `prefix` is put before the command. Every method but
    `close` raises ArmError if the worker fails.
    """

    def __init__(
        self,
        *,
        make: str = "bench.compare.worker:ratrain_step",
        arguments: Mapping[str, Any],
        source: Path | None = None,
        label: str = "",
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ):
        self.label, self._is_ready = label or make, False
        words = {"make": make, "arguments": dict(arguments), "source": str(source.resolve()) if source else ""}
        # steps are measured on one thread; a pool of compilers in each of many workers would only take memory
        threads = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the worker
        try:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, worker.__file__, json.dumps(words)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
                env={**os.environ, **threads, **(environment or {})},
            )  # fmt: skip
        except BaseException:
            self._errors.close()
            raise
        assert self._process.stdin and self._process.stdout
        self._requests, self._answers, self.pid = self._process.stdin, self._process.stdout, self._process.pid

    def ready(self) -> None:
        """Waits until the worker can take a step."""
        if not self._is_ready:
            self._answer()
            self._is_ready = True

    def step(self, n: int = 1) -> float:
        """Takes n steps and returns their total seconds: CPU time of the worker's process, or wall time on a GPU."""
        return self._ask(do="step", n=n)["seconds"]

    def counters(self) -> dict[str, int]:
        """Returns the exact counters of a step: see counters.py."""
        return self._ask(do="counters")

    def instructions(self, n: int) -> None:
        """Takes n steps; if the worker runs under valgrind's callgrind, it counts the instructions of these only."""
        self._ask(do="instructions", n=n)

    def close(self) -> None:
        """Ends the worker, by force after `_PATIENCE` seconds, or 0.1 s if not ready. Does nothing the second time."""
        with contextlib.suppress(OSError):
            self._requests.close()
        try:
            self._process.wait(_PATIENCE if self._is_ready else 0.1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._errors.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        self.ready()
        with contextlib.suppress(OSError):  # if it has ended, reading the answer raises
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            code = self._process.wait()
            ending = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise ArmError(f"{self.label}: the worker {ending}{self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ArmError(f"{self.label}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()[-_TOLD:]
        return ":\n" + "\n".join(f"  {line}" for line in lines) if lines else ", without a word"


@contextlib.contextmanager
def started(arms: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Arm]]:
    """Starts arms from the options of each by name, and yields them when all are ready.

    They are made in parallel: of processes started one by one, the first stays 1 to 2 % slower.
    """
    with contextlib.ExitStack() as opened:
        made = {name: opened.enter_context(Arm(**{"label": name, **options})) for name, options in arms.items()}
        for arm in made.values():
            arm.ready()
        yield made
