"""The worker of an arm: makes a step and takes it on request; see arm.py.

It is this file, started by its path, for every tree: `bench` is that of this tree, and from the other tree it imports
only a few modules of `ratrain`, so that old commits can be measured too. Parent and worker exchange lines of JSON, an
answer for each request; end of file ends the worker.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_WARM = 3  # steps before the first that counts: the first compiles, a second may compile again

Step = Callable[[], object]


class ArmError(Exception):
    """A worker failed; the message is complete for a user and includes the worker's last lines of stderr."""


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


def serve(words: dict[str, Any], requests: IO[str], answers: IO[str]) -> None:
    """Makes the step, sends a first answer, and serves requests until end of file."""
    import torch

    from bench.compare import counters

    def answer(**line: Any) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    torch.set_num_threads(1)
    device = words["arguments"].get("device", "cpu")
    wait = (lambda: torch.cuda.synchronize(device)) if device.startswith("cuda") else None
    try:
        step = _made(**words)
        for _ in range(_WARM):
            step()
    except Exception as error:
        if not (isinstance(error, ArmError) or type(error).__module__ == "ratrain.errors"):
            raise  # the parent shows the last lines of this process's stderr
        answer(error=str(error))
        return
    gc.collect()
    gc.freeze()  # else a collection that traverses all of torch would hit one step in many
    if not wait:
        _settle()
    answer()
    for line in requests:
        request = json.loads(line)
        if request["do"] == "counters":
            answer(**counters.count(step, device))
        elif request["do"] == "instructions":
            counters.under_callgrind(step, request["n"])
            answer()
        else:
            answer(seconds=_timed(step, request["n"], wait))


def _settle() -> None:
    """Pins this process to the core shared by all arms, with real-time priority, as far as the system allows it.

    On one core arms meet equal caches, since they take turns. An interrupted step meets the caches that the other
    program left: on a busy machine, ratios of single rounds spread half as far without interruptions.
    """
    with contextlib.suppress(OSError, AttributeError):  # no privileges; not on macOS
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def _made(make: str, arguments: dict[str, Any], source: str) -> Step:
    if source:
        sys.path[0] = source  # `bench` is imported already, with its path
        import ratrain

        found = Path(ratrain.__path__[0]).resolve().parent
        if found != Path(source):
            raise ArmError(f"{source} has no package ratrain; {found} has")
    module, _, function = make.partition(":")
    return getattr(importlib.import_module(module), function)(**arguments)


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


def main() -> None:
    # output printed by a step must not mix with the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with contextlib.suppress(KeyboardInterrupt):  # the parent handles it and closes its workers
        serve(json.loads(sys.argv[1]), sys.stdin, answers)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # in place of this folder
    # as the module that makers import: one class ArmError, not two
    importlib.import_module("bench.compare.worker").main()
