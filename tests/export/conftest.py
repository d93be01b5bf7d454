"""transformers, where it is installed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def transformers():
    """The library, imported where the checkout is not on the path: it would take our `kernels` for that of others."""
    pytest.importorskip("tokenizers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [path for path in sys.path if Path(path).resolve() != ROOT])
        library = pytest.importorskip("transformers")
        importlib.import_module("transformers.activations")  # asks, and remembers, whether `kernels` is there
    return library
