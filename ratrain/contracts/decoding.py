"""Contracts on decoding: cached decoding equals the full forward pass, and the cache has its stated size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ratrain.config.schema import Manifest
from ratrain.contracts.registry import contract
from ratrain.contracts.states import State, logits_of, tokens_of
from ratrain.model.cache import held_bytes
from ratrain.model.count import count
from ratrain.model.gpt2 import GPT2

_ROUNDING = 1e-10


@contract
def cached_decoding_equals_the_full_forward(manifest: Manifest) -> None:
    length = manifest.model.block_size
    prompt = 2 * length // 5
    pieces = {f"after a prompt of {prompt}, in pieces": [prompt, 1, 7, 1, 1, 30, length - prompt - 40]}
    one_by_one = {"one by one": [1] * length}
    for state, ways in (
        (State(training=False), pieces),
        (State(training=False, activation=0.5, shaken=True), pieces),
        (State(training=False, shaken=True), {**pieces, **one_by_one}),
    ):
        model, tokens = state.of(manifest), tokens_of(manifest, 2, length)
        whole = logits_of(model, tokens)
        for way, sizes in ways.items():
            found, _ = decoded(model, tokens, sizes)
            worst = (found - whole).abs().max().item()
            assert worst <= _ROUNDING * whole.abs().max().item(), (
                f"{state}, {way}: logits are up to {worst:.2g} off; a module that mixes tokens needs earlier ones: the "
                "core has them in its cache, a module at attn.local gets the last `reach` of them, other seams get none"
            )


@torch.inference_mode()
def decoded(model: GPT2, tokens: Tensor, pieces: Sequence[int]) -> tuple[Tensor, list[Any]]:
    """Returns the logits [B, T, V] of tokens [B, T] decoded in pieces of the given sizes, and the resulting caches."""
    caches, start, out = model.new_caches(), 0, []
    for size in pieces:
        out.append(model.logits(tokens[:, start : start + size], caches, start=start))
        start += size
    return torch.cat(out, dim=1), caches


@contract
def its_cache_is_what_it_states(manifest: Manifest) -> None:
    model = State(training=False).of(manifest)
    length, cost = manifest.model.block_size, count(model)
    stated = length * (cost.key_elements_per_token + cost.value_elements_per_token)
    _, caches = decoded(model, tokens_of(manifest, 1, length), [length - 1, 1])
    item = torch.float64.itemsize
    found = {
        "its caches' nbytes": sum(sum(held_bytes(cache)) for cache in caches) / item,
        "the tensors of its caches": sum(_bytes(cache) for cache in caches) / item,
    }
    low, high = _KEPT
    for name, numbers in found.items():
        assert low * stated <= numbers <= high * stated, (
            f"{name} hold {numbers:,.0f} numbers after {length} tokens, but kv_per_token() states {stated:,}"
        )


# bounds on the ratio to the stated size: a pruned cache also holds the current block and each key's received attention
_KEPT = (0.75, 1.3)


def _bytes(holder: Any) -> int:
    """Returns the bytes of all floating-point storages reachable from an object, each once; skips nn.Modules."""
    storages: dict[int, int] = {}
    left, seen = [holder], set()
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, nn.Module):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            if one.is_floating_point():
                storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        elif isinstance(one, Mapping):
            left += one.values()
        elif isinstance(one, (list, tuple)):
            left += one
        else:
            left += getattr(one, "__dict__", {}).values()
    return sum(storages.values())
