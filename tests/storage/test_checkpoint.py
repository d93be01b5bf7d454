"""Checkpoints are complete or absent, whatever breaks, and no damaged byte is believed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ratrain.errors import CannotCreateError, DataError, DiskError
from ratrain.storage import checkpoint as checkpoints
from ratrain.storage.checkpoint import Checkpoint, listed, load, load_newest, require_same_tensors, save, thin

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS")


def made(step=7):
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(3, 4, generator=generator)
    return Checkpoint(
        step=step,
        model={"w": weight, "s": torch.ones(()), "mask": torch.tensor([True, False]), "narrow": weight.bfloat16()},
        optimizer={"w|exp_avg": weight * 2, "w|step": torch.tensor(3.0), "rng|cpu": torch.arange(9, dtype=torch.uint8)},
        state={"last_loss": 1.5, "optimizer": {}, "rng": [1, [2, 3], None]},
    )


def same(a, b):
    tensors = [(a.model, b.model), (a.optimizer, b.optimizer)]
    return a.step == b.step and all(
        x.keys() == y.keys() and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)
        for x, y in tensors
    )


def newest(folder):
    found, _, _ = load_newest(folder)
    assert found
    return found


@pytest.fixture
def saved(tmp_path):
    return save(tmp_path, made(), keep=2)[0]


def test_what_is_loaded_is_what_was_saved(saved):
    loaded = load(saved)
    assert same(loaded, made())
    assert {key: loaded.state[key] for key in made().state} == made().state


def test_a_transposed_tensor_and_shared_memory_survive(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    path, *_ = save(tmp_path, Checkpoint(1, {"t": base.T, "row": base[1].clone()}, {}, {}), keep=2)
    assert torch.equal(load(path).model["t"], base.T)


def test_the_size_told_is_the_size_on_disk(tmp_path):
    path, size, weights = save(tmp_path, made(), keep=2)
    assert size == sum(file.stat().st_size for file in path.iterdir())
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    assert weights == hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()


def test_sha256sum_reads_the_sums(saved):
    for line in (saved / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((saved / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_found(saved, name):
    whole, chance = (saved / name).read_bytes(), random.Random(0)
    for at in chance.sample(range(len(whole)), min(len(whole), 80)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << chance.randrange(8)
        (saved / name).write_bytes(flipped)
        with pytest.raises(DataError, match="differs"):
            load(saved)


def test_a_thinned_run_keeps_the_newest_weights_and_still_finds_flipped_bytes(tmp_path):
    for step in (1, 2):
        save(tmp_path, made(step), keep=2)
    thin(tmp_path)
    (left,) = listed(tmp_path)
    assert sorted(file.name for file in left.iterdir()) == ["SHA256SUMS", "model.safetensors", "state.json"]
    loaded = load(left)
    assert not loaded.optimizer
    assert same(loaded, Checkpoint(2, made(2).model, {}, {}))
    thin(tmp_path)  # nothing is left to be done
    for name in ("SHA256SUMS", "model.safetensors", "state.json"):
        whole, chance = (left / name).read_bytes(), random.Random(0)
        for at in chance.sample(range(len(whole)), min(len(whole), 80)):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << chance.randrange(8)
            (left / name).write_bytes(flipped)
            with pytest.raises(DataError):
                load(left)
        (left / name).write_bytes(whole)


def test_thinning_that_is_broken_off_leaves_a_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, made(), keep=2)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        thin(tmp_path)
    assert (listed(tmp_path)[0] / "optimizer.safetensors").exists()
    assert not load(listed(tmp_path)[0]).optimizer


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_and_every_addition_is_found(saved, name):
    whole, chance = (saved / name).read_bytes(), random.Random(0)
    for damaged in (b"", *(whole[: chance.randrange(len(whole))] for _ in range(20)), whole + b"\0", whole + whole):
        (saved / name).write_bytes(damaged)
        with pytest.raises(DataError):
            load(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(DataError, match=re.escape(f"{name}: cannot be read")):
        load(saved)


def test_files_of_two_checkpoints_do_not_mix(tmp_path):
    older, newer = (save(tmp_path, made(step), keep=2)[0] for step in (1, 2))
    shutil.copy(older / "optimizer.safetensors", newer)
    with pytest.raises(DataError, match=r"optimizer\.safetensors"):
        load(newer)


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, sprung: Path):
        self.sprung = sprung

    def __reduce__(self):
        return os.mkdir, (str(self.sprung),)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("resummed", [False, True])
def test_a_pickle_is_refused_and_never_run_even_under_a_right_sum(saved, tmp_path, name, resummed):
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    (saved / name).write_bytes(trap)
    if resummed:
        digests = {n: hashlib.sha256((saved / n).read_bytes()).hexdigest() for n in FILES[:3]}
        (saved / "SHA256SUMS").write_bytes(checkpoints._sums(digests))
    with pytest.raises(DataError):
        load(saved)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()  # the trap works


def one_tensor(name, entry, data=b"\0\0\0\0"):
    """A safetensors file with this entry in its header."""
    header = json.dumps({name: entry}).encode()
    return struct.pack("<Q", len(header)) + header + data


HOSTILE = {
    "a header longer than the file": struct.pack("<Q", 1 << 62) + b"{}",
    "a header of a gigabyte": struct.pack("<Q", 1 << 30) + b"{" + b" " * 100,
    "offsets beyond the file": one_tensor("w", {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}),
    "offsets that overlap": one_tensor("w", {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}),
    "a shape that overflows": one_tensor("w", {"dtype": "F32", "shape": [1 << 62, 8], "data_offsets": [0, 4]}),
    "an unknown type": one_tensor("w", {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 4]}),
    "a header that is no object": struct.pack("<Q", 2) + b"[]",
}


def resummed(saved, name, data):
    """Puts `data` in a checkpoint's file, under a sum that is right."""
    (saved / name).write_bytes(data)
    digests = {n: hashlib.sha256((saved / n).read_bytes()).hexdigest() for n in FILES[:3]}
    (saved / "SHA256SUMS").write_bytes(checkpoints._sums(digests))


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused_even_under_a_right_sum(saved, what):
    resummed(saved, "model.safetensors", HOSTILE[what])
    with pytest.raises(DataError, match="is not a checkpoint of ratrain"):
        load(saved)


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "[]", "null", '{"format": 1}', "nan" * 9, '{"format": 1e999}'])
def test_a_hostile_state_is_refused_even_under_a_right_sum(saved, text):
    resummed(saved, "state.json", text.encode())
    with pytest.raises(DataError):
        load(saved)


def test_a_name_that_climbs_out_of_the_folder_names_a_tensor_and_no_file(saved, tmp_path):
    resummed(saved, "model.safetensors", safetensors.torch.save({"../../escaped": torch.ones(2)}))
    loaded = load(saved)
    with pytest.raises(DataError, match="does not fit the model"):
        require_same_tensors(made().model, loaded)
    assert not list(tmp_path.parent.glob("escaped*"))


def test_another_format_is_refused_by_number(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 99)
    path, *_ = save(tmp_path, made(), keep=2)
    monkeypatch.undo()
    with pytest.raises(DataError, match="format 99"):
        load(path)


# several


def damage(path):
    with (path / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")


def test_the_newest_that_verifies_is_loaded_and_the_others_are_named(tmp_path):
    paths = [save(tmp_path, made(step), keep=9)[0] for step in (1, 2, 3)]
    damage(paths[2])
    damage(paths[1])
    found, path, failures = load_newest(tmp_path)
    assert (found and found.step, path) == (1, paths[0])
    assert [str(paths[2]) in failures[0], str(paths[1]) in failures[1], len(failures)] == [True, True, 2]


def test_none_that_verifies_is_an_error_and_none_at_all_is_not(tmp_path):
    assert load_newest(tmp_path / "nothing") == (None, None, ())
    damage(save(tmp_path, made(), keep=2)[0])
    with pytest.raises(DataError, match="--fresh"):
        load_newest(tmp_path)


def test_the_newest_is_so_by_number_not_by_name(tmp_path):
    for step in (99_999_999, 100_000_000):
        save(tmp_path, made(step), keep=2)
    assert newest(tmp_path).step == 100_000_000


@pytest.mark.parametrize("keep", [2, 3])
def test_the_newest_few_are_kept(tmp_path, keep):
    for step in range(1, 7):
        save(tmp_path, made(step), keep=keep)
    assert [load(path).step for path in listed(tmp_path)] == list(range(6, 6 - keep, -1))
    assert len(list(tmp_path.iterdir())) == keep


def test_damaged_later_ones_do_not_count_among_the_kept(tmp_path):
    good, bad = (save(tmp_path, made(step), keep=2)[0] for step in (20, 30))
    damage(bad)
    save(tmp_path, made(25), keep=2)  # the run went back to 20
    assert good.exists()
    assert newest(tmp_path).step == 25


def test_saving_a_step_again_replaces_it(tmp_path):
    damage(save(tmp_path, made(), keep=2)[0])
    path, *_ = save(tmp_path, made(), keep=2)
    assert same(load(path), made())


def test_what_a_killed_writer_left_is_ignored_and_cleaned_away(tmp_path):
    left = tmp_path / ".step-00000005.part"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (tmp_path / "step-notes").mkdir()
    assert load_newest(tmp_path) == (None, None, ())
    save(tmp_path, made(), keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000007", "step-notes"}


# whatever breaks


class Killed(BaseException):
    """The process ends here: no handler of ours runs."""


def failing(function, at, error):
    """`function`, whose call number `at` raises `error` instead; it counts its calls."""

    def call(*args, **kwargs):
        call.count += 1
        if call.count == at:
            raise error
        return function(*args, **kwargs)

    call.count = 0
    return call


POINTS = [(os, name) for name in ("open", "write", "fsync", "close", "mkdir", "rename", "unlink", "rmdir")]


def calls_of(owner, name, folder, monkeypatch):
    """How often a save calls the function."""
    with monkeypatch.context() as patch:
        counting = failing(getattr(owner, name), 0, None)
        patch.setattr(owner, name, counting)
        save(folder, made(3), keep=2)
    return counting.count


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), Killed()], ids=["full", "killed"])
@pytest.mark.parametrize(("owner", "name"), POINTS, ids=lambda p: getattr(p, "__name__", p))
def test_a_failure_anywhere_leaves_a_checkpoint_that_is_whole(tmp_path, monkeypatch, owner, name, error):
    for step in (1, 2):
        save(tmp_path / "counted", made(step), keep=2)
    calls = calls_of(owner, name, tmp_path / "counted", monkeypatch)
    assert calls
    for at in range(1, calls + 1):
        folder = tmp_path / str(at)
        for step in (1, 2):
            save(folder, made(step), keep=2)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing(getattr(owner, name), at, error))
            raised = fails(lambda folder=folder: save(folder, made(3), keep=2))
        assert raised in (None, DiskError, Killed)
        found = newest(folder)
        assert same(found, made(found.step))
        assert found.step == 3 if raised is None else found.step >= 2
        assert load_newest(folder)[2] == ()
        save(folder, made(4), keep=2)  # and the next one goes through, and cleans up
        assert len(list(folder.iterdir())) == 2


def fails(run):
    """The kind of what `run` raises; None where it returns."""
    try:
        run()
    except (DiskError, Killed) as error:
        return type(error)
    return None


def test_a_disk_that_fills_half_way_through_a_file_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    save(tmp_path, made(1), keep=2)
    files = []

    def full(descriptor, data):
        files.append(descriptor)
        if len(files) == 2:  # the optimizer's: a first piece is taken, the next is not
            return real(descriptor, data[:50])
        if len(files) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    real = os.write
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskError, match=r"No space left on device \([\d,]+ bytes free\)"):
        save(tmp_path, made(2), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_folder_that_may_not_be_written_is_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "mkdir", failing(os.mkdir, 1, PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(CannotCreateError, match="Permission denied"):
        save(tmp_path / "checkpoints", made(), keep=2)
