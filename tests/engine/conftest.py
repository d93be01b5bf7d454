"""What engines leave behind in a process is put back after each test."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def clean_torch():
    yield
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def short_sample(monkeypatch):
    """The text at the end of a run is not what these tests are about."""
    monkeypatch.setattr("ratrain.engine.engine._SAMPLE_TOKENS", 2)


@pytest.fixture(autouse=True)
def own_inductor_folder(monkeypatch, tmp_path):
    """Launching sets it for the process."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
