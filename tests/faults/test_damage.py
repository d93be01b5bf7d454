"""Damage to what is read back is found, whatever bit it hits."""

from __future__ import annotations

import os
import random

import pytest
import torch

from ratrain.engine.engine import Engine
from ratrain.errors import DataError
from ratrain.storage.checkpoint import load, load_newest

LONG = os.environ.get("FAULTS") == "long"


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Checkpoints of a tiny run, of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    manifest = tiny("v9", "train.budget.steps=4", "checkpoint.every=2", "eval.windows=2")
    Engine(manifest, checkpoints=folder, device=torch.device("cpu"), emit=lambda event: None).run()
    return folder


def test_every_single_flipped_bit_is_found(trained):
    newest = trained / "step-00000004"
    files = sorted(path for path in newest.iterdir())
    sizes = [path.stat().st_size for path in files]
    chance, count, found = random.Random(0), 5000 if LONG else 200, 0
    for _ in range(count):
        (path,) = chance.choices(files, sizes)
        # half of the flips in the headers and sums, which are few of the bytes and where a reader looks first
        path = chance.choice(files) if chance.random() < 0.5 else path
        at, bit = chance.randrange(min(path.stat().st_size, chance.choice([2000, 1 << 40]))), chance.randrange(8)
        with path.open("r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ (1 << bit)]))
            file.flush()
            with pytest.raises(DataError, match="differs"):
                load(newest)
            found += 1
            file.seek(at)
            file.write(bytes([byte]))
    load(newest)
    print(f"{found} of {count} flipped bits found")


def test_a_damaged_checkpoint_costs_one_interval(trained):
    (trained / "step-00000004" / "optimizer.safetensors").write_bytes(b"")
    checkpoint, path, failures = load_newest(trained)
    assert (checkpoint and checkpoint.step, path and path.name, len(failures)) == (2, "step-00000002", 1)
