"""Runs of several processes."""

from __future__ import annotations

import pytest

from tests.machine.gangs import run_gang


@pytest.fixture(scope="session")
def gang(own_cache):
    """Runs tasks (processes, out, overrides, fault) one after the other; returns what gang.py prints of each."""
    return run_gang
