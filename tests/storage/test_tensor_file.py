"""A file of tensors has the library's bytes, and is written without a copy of the whole."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ratrain.storage import tensor_file
from ratrain.storage.checkpoint import Checkpoint, load, save
from ratrain.storage.tensor_file import Summed, encoded, largest_of, mapped

MIB = 2**20


def every_kind() -> dict[str, torch.Tensor]:
    found = {}
    for number, kind in enumerate(tensor_file._TYPES):
        bits = torch.arange(12 * 8, dtype=torch.uint8)[: 12 * kind.itemsize]
        found[f'a "quoted" é|{number}'] = (bits % 2 if kind is torch.bool else bits).view(kind).view(3, 4)
        found[f"scalar{number}"] = found[f'a "quoted" é|{number}'][1, 2].clone()
    return found | {"empty": torch.empty(0, 4), "turned": torch.arange(12.0).view(3, 4).T}


@pytest.mark.parametrize("piece", [1, 7, 64, 2**24])
def test_the_bytes_are_those_of_the_library(piece, monkeypatch):
    monkeypatch.setattr(tensor_file, "_PIECE", piece)
    expected = safetensors.torch.save({name: tensor.contiguous() for name, tensor in every_kind().items()})
    pieces = list(encoded(every_kind()))
    assert b"".join(pieces) == expected
    assert max(map(len, pieces)) <= piece
    summed = Summed(encoded(every_kind()))
    assert sum(len(part) for part in summed) == summed.size == len(expected)
    assert summed.sha256 == hashlib.sha256(expected).hexdigest()


def test_nothing_is_a_file_too():
    assert b"".join(encoded({})) == safetensors.torch.save({})


def test_what_is_changed_in_memory_stays_out_of_the_file(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"".join(encoded({"x": torch.ones(3)})))
    mapped(file)["x"].zero_()
    assert torch.equal(mapped(file)["x"], torch.ones(3))


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_found_wherever_it_is(kind, bad):
    for size in (1, 3, 1000, 100_003):
        for at in (0, size // 2, size - 1):
            tensor = torch.full((size,), torch.finfo(kind).max, dtype=kind)
            if bad is not None:
                tensor[at] = bad
            assert largest_of(tensor).isfinite() == tensor.isfinite().all()
            assert largest_of(tensor).isnan() == tensor.isnan().any()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of a process")
def test_a_save_and_a_load_hold_no_second_copy(tmp_path):
    weights = {f"w{number}": torch.full((16, MIB), float(number)) for number in range(6)}  # 64 MiB each
    moments = {f"w{number}|exp_avg": torch.full((16, MIB), 0.5) for number in range(2)}
    state = Checkpoint(1, weights, moments, {"buffers": []})
    with peak() as grown:
        path, *_ = save(tmp_path, state, keep=2)
        assert grown() < 100 * MIB
    with peak() as grown:
        found = load(path)
        assert grown() < 100 * MIB
    assert all(torch.equal(found.model[name], weight) for name, weight in weights.items())


class peak:  # noqa: N801 - reads as a block
    """Tells by how many bytes of its own memory, files that are mapped apart, the process grew at most."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")
        start = self._told("RssAnon")
        return lambda: self._told("VmHWM") - self._told("RssFile") - start

    def __exit__(self, *_):
        pass

    def _told(self, key: str) -> int:
        (size,) = re.findall(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(size) * 1024
