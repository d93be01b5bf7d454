"""Small models of the old studies in float64, every parameter drawn anew, so that no gate stands at its start."""

from __future__ import annotations

import pytest
import torch

from ratrain.model.build import build
from ratrain.registry import patch_kinds

SHAPE = ("model.n_layer=3", "model.n_head=2", "model.n_embd=16", "model.block_size=24")


@pytest.fixture
def old_model(tiny):
    """(model, options) of GPT-2 with the patch `kind` and its options, in evaluation."""

    def old_model(kind, *overrides, **options):
        manifest = tiny("gpt2", *SHAPE, *overrides)
        patch = patch_kinds()[kind].model_validate(options)
        model = build(manifest.model_copy(update={"patch": {kind: patch}})).double().eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.4, generator=generator)
        return model, patch

    return old_model


@pytest.fixture
def tokens():
    """[2, 19]"""
    return torch.randint(100, (2, 19), generator=torch.Generator().manual_seed(1))
