"""Small models of any shape, built the way a run builds them."""

from __future__ import annotations

import pytest

from ratrain.config.schema import ModelSpec
from ratrain.model.build import build

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12, "vocab_size": 100}


@pytest.fixture(scope="session")
def manifest_of(tiny):
    """A manifest with these patches (by name) over a model of SHAPE, changed by what else is given."""

    def manifest_of(patches=None, *, seed: int = 1, **shape):
        base = tiny()
        update = {
            "model": ModelSpec(**{**SHAPE, **shape}),
            "patch": patches or {},
            "seed": base.seed.model_copy(update={"init": seed}),
        }
        return base.model_copy(update=update)

    return manifest_of


@pytest.fixture(scope="session")
def model_of(manifest_of):
    def model_of(patches=None, *, seed: int = 1, device: str = "cpu", **shape):
        return build(manifest_of(patches, seed=seed, **shape), device=device)

    return model_of
