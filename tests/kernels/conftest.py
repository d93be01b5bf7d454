"""Kernels on a CPU: Triton's interpreter has to be chosen before Triton is imported, so its tests run by themselves."""

from __future__ import annotations

import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("interpreter") and not INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="needs TRITON_INTERPRET=1, as `make test` gives it"))


@pytest.fixture(autouse=True)
def poisoned(request, monkeypatch):
    """What a kernel does not write is NaN, not what happened to lie there."""
    if not request.node.get_closest_marker("interpreter"):
        return
    import torch

    def filled(make):
        def poison(*args, **options):
            tensor = make(*args, **options)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return poison

    for where, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(where, name, filled(getattr(where, name)))
