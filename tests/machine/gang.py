"""Runs a command line as N forked processes that find each other, as a launcher would: torch is imported once.

`python gang.py JSON [DTYPE]`, a list of [processes, argv, fault]; `fault` is [rank, step, what]: in that process the
disk is "full" from that step on, or "full at the end" of a checkpoint; "torch" is of another version; the step "fails";
or it gets the signal of that number. One that is stopped (SIGSTOP) is killed once all others have ended. DTYPE, of
torch's, is that of the models (float32). Prints, as JSON, for each the exit codes, and SHA-256 of the weights that each
process ends with.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sys
from itertools import islice
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from ratrain.cli import main
from ratrain.engine.engine import Engine
from ratrain.engine.step import TrainStep
from ratrain.machine import heartbeat
from ratrain.storage import checkpoint
from tests.machine.ranks import forked

run, step, write = Engine.run, TrainStep.__call__, checkpoint.write_synced


def digest(engine: Engine) -> str:
    state = hashlib.sha256()
    for name, tensor in engine.model.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        state.update(name.encode() + whole.double().numpy().tobytes())
    return state.hexdigest()


def member(rank: int, argv: list[str], fault: list | None, told: int) -> int:
    calls = [0]
    heartbeat.PERIOD, heartbeat.SILENT = 0.25, 24
    mine = fault[1:] if fault and fault[0] == rank else [0, ""]
    if mine[1] == "torch":
        torch.__version__ = "2.0"

    def stepping(self, *batch):
        calls[0] += 1
        if mine[1] == "fails" and calls[0] == mine[0]:
            raise ValueError("a fault of this process alone")
        if isinstance(mine[1], int) and calls[0] == mine[0]:
            os.kill(os.getpid(), mine[1])
        return step(self, *batch)

    def writing(path, pieces):
        full = mine[1] == "full" or (mine[1] == "full at the end" and path.name == "state.json")
        if full and calls[0] >= mine[0]:
            write(path, islice(pieces, 1))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, pieces)

    def running(self, **options):
        try:
            return run(self, **options)
        finally:
            os.write(told, digest(self).encode())

    TrainStep.__call__, Engine.run = stepping, running  # type: ignore[method-assign]
    checkpoint.write_synced = writing
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return main(argv)


def gang(processes: int, argv: list[str], fault: list | None) -> dict:
    children = forked(processes, lambda rank, told: member(rank, argv, fault, told))
    codes = {}
    for rank in sorted(
        range(processes), key=lambda rank: bool(fault and fault[0] == rank)
    ):  # the one with a fault last
        if fault and fault[0] == rank and fault[2] == signal.SIGSTOP:
            os.kill(children[rank][0], signal.SIGKILL)
        codes[rank] = os.waitstatus_to_exitcode(os.waitpid(children[rank][0], 0)[1])
    return {
        "codes": [codes[rank] for rank in range(processes)],
        "weights": [os.read(read, 100).decode() for _, read in children],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(getattr(torch, sys.argv[2]) if len(sys.argv) > 2 else torch.float32)
    print(json.dumps([gang(*task) for task in json.loads(sys.argv[1])]))
