"""A checkpoint that is written beside the steps is the one that was asked for, and its failure is told."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch

from ratrain.errors import DiskError
from ratrain.storage import saver as savers
from ratrain.storage.checkpoint import Checkpoint, load, save, write_tensors
from ratrain.storage.saver import Saver, Written


def state(value: float, step: int = 1) -> Checkpoint:
    tensors = {"w": torch.full((3, 4), value)}, {"w|exp_avg": torch.full((3, 4), -value), "rng|0|cpu": torch.arange(3)}
    return Checkpoint(step, *tensors, {"buffers": [], "counts": [value]})


@pytest.fixture
def go(monkeypatch):
    """Nothing is written before this event is set."""
    event = Event()

    def held(*args, **kwargs):
        event.wait()
        return write_tensors(*args, **kwargs)

    monkeypatch.setattr(savers, "write_tensors", held)
    return event


def test_what_changes_after_the_start_does_not_reach_the_file(tmp_path, go):
    saver, now = Saver(tmp_path, keep=2), state(1.0)
    saver.start(now, behind=True)
    assert saver.take(wait=False) is None
    now.model["w"].zero_()
    now.optimizer["rng|0|cpu"].zero_()
    now.state["counts"].append(7.0)
    go.set()
    done = saver.take(wait=True)
    assert isinstance(done, Written)
    found, asked = load(done.path), state(1.0)
    assert torch.equal(found.model["w"], asked.model["w"])
    assert all(torch.equal(found.optimizer[name], tensor) for name, tensor in asked.optimizer.items())
    assert found.state["counts"] == [1.0]
    assert 0 < done.stall <= done.seconds
    assert saver.take(wait=True) is None


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("reserved", [False, True])
def test_the_files_are_the_same_either_way(tmp_path, behind, reserved):
    saver, sums = Saver(tmp_path, keep=2), []
    if reserved:
        saver.reserve(state(0.0))
    for step in (1, 2, 3):  # the memory of the first copy is used again
        saver.start(state(step / 2, step), behind=behind)
        done = saver.take(wait=True)
        assert isinstance(done, Written)
        sums.append((done.path / "SHA256SUMS").read_text())
        alone, *_ = save(tmp_path / "alone", state(step / 2, step), keep=2)
        assert sums[-1] == (alone / "SHA256SUMS").read_text()
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("behind", [False, True])
def test_a_full_disk_is_returned_and_a_fault_raised(tmp_path, behind, monkeypatch):
    failures: list[Exception] = [DiskError("full"), ZeroDivisionError("a fault")]

    def failing(*_, **__):
        raise failures.pop(0)

    monkeypatch.setattr(savers, "write_tensors", failing)
    saver = Saver(tmp_path, keep=2)
    saver.start(state(1.0), behind=behind)
    assert isinstance(saver.take(wait=True), DiskError)
    saver.start(state(1.0), behind=behind)
    with pytest.raises(ZeroDivisionError, match="a fault"):
        saver.take(wait=True)


def test_leaving_waits_for_the_checkpoint_but_an_interrupt_does_not(tmp_path, go):
    with pytest.raises(KeyboardInterrupt), Saver(tmp_path, keep=2) as saver:
        saver.start(state(1.0), behind=True)
        raise KeyboardInterrupt
    assert not list(Path(tmp_path).glob("step-*"))
    go.set()
    with pytest.raises(ValueError, match="x"), saver:
        raise ValueError("x")
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000001"]


def test_memory_that_cannot_be_pinned_is_used_unpinned():
    on_gpu = SimpleNamespace(shape=(3, 4), dtype=torch.bfloat16, is_cuda=True)
    memory = savers._memory(on_gpu)
    assert (memory.shape, memory.dtype, memory.is_pinned()) == ((3, 4), torch.bfloat16, torch.cuda.is_available())
