"""One bit per weight, and the k smallest against torch.sort."""

from __future__ import annotations

import pytest
import torch

from ratrain.recipe.prune.masks import GONE, bytes_as_rows, keys_of, pack, smallest, unpack

CPU = torch.device("cpu")


def randoms(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1,), (3, 5), (8, 8), (7, 11)])
def test_packing_takes_an_eighth_of_a_byte_and_loses_nothing(shape):
    mask = randoms(*shape) > 0
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpack(packed, mask.shape, bytes_as_rows(CPU)), mask.float())


def test_keys_are_in_the_order_of_the_scores():
    scores = torch.tensor([-torch.inf, -3.5, -1e-40, -0.0, 0.0, 1e-45, 2.0, torch.inf])
    keys = keys_of(scores)
    assert keys.dtype == torch.int32
    assert keys[3] == keys[4]  # -0 and 0
    assert torch.equal(keys.sort(stable=True).indices, torch.arange(8))
    assert (keys > GONE).all()


def by_sorting(parts, k):
    """The first k of a stable sort of all."""
    keys = torch.cat(parts)
    out = torch.zeros_like(keys, dtype=torch.bool)
    out[keys.sort(stable=True).indices[:k]] = True
    return out.split([len(part) for part in parts])


@pytest.mark.parametrize("k", [0, 1, 7, 500, 999, 1000])
@pytest.mark.parametrize("distinct", [2, 40, 100_000])
def test_the_k_smallest_are_those_of_a_stable_sort(k, distinct):
    scores = (randoms(1000) * distinct).round() / distinct
    parts = keys_of(scores).split([300, 1, 699])
    found = list(smallest([lambda part=part: part for part in parts], k, CPU))
    for mine, theirs in zip(found, by_sorting(parts, k), strict=True):
        assert torch.equal(mine, theirs)


def test_scores_that_differ_in_their_last_bits_alone_are_told_apart():
    scores = torch.ones(64).view(torch.int32).add(torch.arange(64, dtype=torch.int32).flip(0)).view(torch.float32)
    (found,) = smallest([lambda: keys_of(scores)], 10, CPU)
    assert torch.equal(found.nonzero().flatten(), torch.arange(54, 64))


def test_each_part_is_asked_three_times_and_never_held_with_the_others():
    asked = []

    def part(number):
        asked.append(number)
        return keys_of(randoms(100, seed=number))

    list(smallest([lambda n=n: part(n) for n in range(3)], 50, CPU))
    assert asked == [0, 1, 2] * 3
