"""Stated costs against counted ones: torch's own FLOP counter, and the storage of a real cache."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ratrain.model.cache import KVCache
from ratrain.model.count import count
from ratrain.patches.unified_ra import UnifiedRA

# vocabularies that need no padding: the counted forward pass multiplies no padding rows
SHAPES = [
    {"n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 8, "vocab_size": 128},
    {"n_layer": 3, "n_head": 2, "n_embd": 32, "block_size": 64, "vocab_size": 256},
    {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 33, "vocab_size": 128, "mlp_ratio": 6},
    {"n_layer": 2, "n_head": 3, "n_embd": 24, "block_size": 16, "vocab_size": 384, "bias": False},
]


@pytest.mark.parametrize("patches", [{}, {"unified_ra": UnifiedRA(rank=4)}], ids=["base", "unified_ra"])
@pytest.mark.parametrize("shape", SHAPES)
def test_flops_are_those_that_torch_counts(model_of, shape, patches):
    model = model_of(patches, **shape)
    tokens = torch.zeros(2, model.spec.block_size, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.logits(tokens)
    assert count(model).forward_flops_per_token * tokens.numel() == counter.get_total_flops()


def test_training_costs_three_forward_passes(model_of):
    model = model_of(**SHAPES[1])
    tokens = torch.zeros(2, model.spec.block_size, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.logits(tokens).sum().backward()
    assert count(model).train_flops_per_token * tokens.numel() == counter.get_total_flops()


@pytest.mark.parametrize("shape", SHAPES)
def test_kv_bytes_are_those_that_a_cache_holds(model_of, shape):
    model = model_of(**shape)
    length = model.spec.block_size
    caches = [KVCache(length) for _ in model.blocks]
    model.logits(torch.zeros(1, length, dtype=torch.int64), caches)
    held = sum(t.untyped_storage().nbytes() for cache in caches for t in cache.held)
    assert count(model).kv_bytes_per_token(4) * length == held
    assert count(model).kv_bytes_per_token(2) * length == held / 2


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_counted_once_on_any_device(model_of, shape):
    cost = count(model_of(**shape))
    assert cost == count(model_of(device="meta", **shape))
    assert cost.parameters == sum(t.numel() for t in model_of(**shape).state_dict().values())
    assert cost.position_parameters == shape["block_size"] * shape["n_embd"]
