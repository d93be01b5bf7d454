"""Locks of files and folders, held by this process and looked at by it through other descriptors."""

from __future__ import annotations

import os

import pytest

from ratrain.lock import is_locked, lock


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_one_holder_at_a_time(tmp_path, kind):
    path = tmp_path if kind == "folder" else tmp_path / "lock"
    held = lock(path)
    assert is_locked(path)
    with pytest.raises(BlockingIOError):
        lock(path)
    os.close(held)
    assert not is_locked(path)
    os.close(lock(path))


def test_a_shared_lock_makes_no_file_and_needs_no_permission_to_write(tmp_path):
    assert not is_locked(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    file = tmp_path / "lock"
    held = lock(file)
    file.chmod(0o444)
    assert is_locked(file)
    os.close(held)
    first, second = lock(file, shared=True), lock(file, shared=True)
    assert not is_locked(file)
    os.close(first)
    os.close(second)


def test_a_refused_lock_leaves_no_descriptor_open(tmp_path):
    held = lock(tmp_path / "lock")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            lock(tmp_path / "lock")
    assert not before or len(os.listdir("/proc/self/fd")) == before
    os.close(held)
