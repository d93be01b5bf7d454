"""An arm of a measurement in its own process, so that arms may have different trees, programs or environments.

Parent: `with Arm.start(arguments={"manifest": "v9"}, source=tree) as arm: seconds = arm.step(10)`. The worker is this
file, started by its path, for every tree: `bench` is that of this tree, and from `source` it imports only a few modules
of `ratrain`, so that old commits can be measured too. Parent and worker exchange lines of JSON, an answer for each
request; end of file ends the worker.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_WARM = 3  # steps before the first that counts: the first compiles, a second may compile again
_PATIENCE = 10  # seconds a worker has to end by itself
_TOLD = 12  # lines of stderr that are passed on when a worker ends

Step = Callable[[], object]


class ArmError(Exception):
    """A worker failed; the message is complete for a user and includes the worker's last lines of stderr."""


class Arm:
    """The parent's handle of a worker. Every method but `close` raises ArmError if the worker fails."""

    def __init__(self, label: str, process: subprocess.Popen[str], errors: IO[bytes]):
        self.label, self._process, self._errors = label, process, errors
        self.told: dict[str, Any] | None = None  # the worker's first answer, sent once it is ready

    @classmethod
    def start(
        cls,
        *,
        make: str = "bench.compare.worker:ratrain_step",
        arguments: Mapping[str, Any] | None = None,
        source: Path | None = None,
        label: str = "",
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        wait: bool = True,
    ) -> Arm:
        """Starts a worker and waits until its step is made, compiled and warm; without `wait` it returns at once.

        `make` is `module:function`, found beside this file too; called with `arguments` (plain JSON) it returns a
        callable that takes one step. `ratrain` comes from the tree `source`, else from the installed package. A
        `device` among the arguments is the device that is timed. `environment` is added to this process's environment;
        `prefix` is put before the command.
        """
        label = label or make
        words = {"make": make, "arguments": dict(arguments or {}), "source": str(source.resolve()) if source else ""}
        # steps are measured on one thread; a pool of compilers in each of many workers would only take memory
        given = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", **(environment or {})}
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the worker
        process = subprocess.Popen(
            [*prefix, sys.executable, __file__, json.dumps(words)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=given,
        )  # fmt: skip
        arm = cls(label, process, errors)
        try:
            if wait:
                arm.ready()
        except BaseException:
            arm.close()
            raise
        return arm

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> None:
        """Waits until the worker can take a step."""
        if self.told is None:
            self.told = self._answer()

    def step(self, n: int = 1) -> float:
        """Takes n steps and returns their total seconds: CPU time of the worker's process, or wall time on a GPU."""
        return self._ask({"do": "step", "n": n})["seconds"]

    def counters(self) -> dict[str, int]:
        """Returns the exact counters of a step: see counters.py."""
        return self._ask({"do": "counters"})

    def instructions(self, n: int) -> None:
        """Takes n steps; if the worker runs under valgrind's callgrind, it counts the instructions of these only."""
        self._ask({"do": "instructions", "n": n})

    def close(self) -> None:
        """Ends the worker, by force after `_PATIENCE` seconds, or 0.1 s if not ready. Does nothing the second time."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE if self.told else 0.1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Arm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.ready()
        assert self._process.stdin
        with contextlib.suppress(OSError):  # if it has ended, reading the answer raises
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise ArmError(f"{self.label}: the worker {_ending(self._process.wait())}{self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ArmError(f"{self.label}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()[-_TOLD:]
        return ":\n" + "\n".join(f"  {line}" for line in lines) if lines else ", without a word"


def _ending(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def interleaved(
    arms: Mapping[str, Arm], rounds: int, steps: int = 1, on_round: Callable[[int], object] | None = None
) -> dict[str, list[float]]:
    """Returns the seconds of a step, by arm and round: each round runs the arms in order and in reverse order, `steps`
    steps at a time."""
    from ratrain.profile.paired_timing import (
        interleave,  # not at import: a worker may be of a tree that has no such thing
    )

    def once(arm: Arm) -> float:
        return arm.step(steps) / steps

    return interleave({name: functools.partial(once, arm) for name, arm in arms.items()}, rounds, on_round)


# the worker's side


def ratrain_step(
    manifest: str, scale: str | None = None, overrides: Sequence[str] = (), device: str = "cpu", batches: int = 16
) -> Step:
    """Returns a train step of a shipped manifest, built as by the engine; each call cycles to the next of `batches`."""
    import torch

    try:
        from ratrain.config.read import find_manifest, read_source
        from ratrain.config.resolve import resolve
        from ratrain.data.corpus import open_corpus
        from ratrain.data.sampling import Sampler
        from ratrain.engine.assembly import train_step
        from ratrain.machine import compile as compiling
        from ratrain.machine import device as devices
        from ratrain.registry import optim_kinds, patch_kinds
    except ImportError as error:
        raise ArmError(f"this tree is older than the bench can measure ({error})") from None
    place = torch.device(device)
    for prepare in (getattr(compiling, "keep_compiled_code", None), getattr(devices, "keep_freed_memory", None)):
        if prepare:  # older trees lack it and train without it
            prepare()
    source = read_source(find_manifest(manifest), scale=scale, overrides=list(overrides))
    resolved = resolve(source, patches=patch_kinds(), optimizers=optim_kinds())
    devices.set_determinism(resolved.train.deterministic, place)
    spec, train = resolved.model, resolved.train
    corpus = open_corpus(resolved.data, vocab_size=spec.vocab_size)
    sampler = Sampler(corpus.train, seed=1, batch=train.batch, block_size=spec.block_size)
    read = [tuple(part.to(place) for part in sampler.batch(number)) for number in range(batches)]
    model, step = train_step(resolved, lr=1e-3, device=device)
    return _TrainStep(model, step, itertools.cycle(read))


@dataclass
class _TrainStep:
    model: Any
    step: Any
    batches: Iterator[Any]

    def __call__(self) -> None:
        self.step(*next(self.batches))

    def state_bytes(self) -> int:
        """Bytes of the checkpointed state: parameters, buffers, the optimizer's state."""
        state = [part for of in self.step.optimizer.state.values() for part in of.values() if hasattr(part, "nbytes")]
        held = [*self.model.parameters(), *self.model.buffers(), *state]
        return sum({id(part): part.nbytes for part in held}.values())


def _serve(words: dict[str, Any], requests: IO[str], answers: IO[str]) -> None:
    """Makes the step, sends a first answer, and serves requests until end of file."""

    def answer(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    import torch

    torch.set_num_threads(1)
    device = words["arguments"].get("device", "cpu")
    wait = functools.partial(torch.cuda.synchronize, device) if device.startswith("cuda") else None
    try:
        step = _made(words)
        for _ in range(_WARM):
            step()
    except Exception as error:
        known = isinstance(error, ArmError) or type(error).__module__ == "ratrain.errors"
        if not known:
            raise  # the parent shows the last lines of this process's stderr
        answer({"error": str(error)})
        return
    gc.collect()
    gc.freeze()  # else a collection that traverses all of torch would hit one step in many
    answer({"torch": torch.__version__, "undisturbed": not wait and _settled()})
    for line in requests:
        request = json.loads(line)
        if request["do"] == "counters":
            answer(importlib.import_module("bench.compare.counters").count(step, device))
        elif request["do"] == "instructions":
            importlib.import_module("bench.compare.counters").under_callgrind(step, request["n"])
            answer({})
        else:
            answer({"seconds": _timed(step, request["n"], wait)})


def _settled() -> bool:
    """Pins this process to the core shared by all arms, with real-time priority; returns whether the system allows it.

    On one core arms meet equal caches, since they take turns. An interrupted step meets the caches that the other
    program left: on a busy machine, ratios of single rounds spread half as far without interruptions. Needs privileges.
    """
    if not hasattr(os, "sched_setaffinity"):
        return False
    try:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        return False
    return True


def _made(words: dict[str, Any]) -> Step:
    if words["source"]:
        sys.path[0] = words["source"]  # `bench` is imported already, with its path
        import ratrain

        found = Path(ratrain.__path__[0]).resolve().parent
        if found != Path(words["source"]):
            raise ArmError(f"{words['source']} has no package ratrain; {found} has")
    module, _, function = words["make"].partition(":")
    return getattr(importlib.import_module(module), function)(**words["arguments"])


def _timed(step: Step, n: int, wait: Step | None) -> float:
    """Returns the seconds of n steps: CPU time of this process, or wall time with `wait` to synchronize a device."""
    clock = time.perf_counter if wait else time.process_time
    if wait:
        wait()
    start = clock()
    for _ in range(n):
        step()
    if wait:
        wait()
    return clock() - start


def _main() -> None:
    # output printed by a step must not mix with the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with contextlib.suppress(KeyboardInterrupt):  # the parent handles it and closes its workers
        _serve(json.loads(sys.argv[1]), sys.stdin, answers)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # in place of this folder
    # as the module that makers import: one class ArmError, not two
    importlib.import_module("bench.compare.worker")._main()
