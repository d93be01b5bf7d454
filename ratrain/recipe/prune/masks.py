"""Masks of one bit per weight, and selection of the k smallest scores without sorting or gathering them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_BINS = 1 << 16
GONE = torch.iinfo(torch.int32).min  # below the key of every score
STAYS = torch.iinfo(torch.int32).max


def pack(mask: Tensor) -> Tensor:
    """Packs a bool mask of any shape into uint8 [ceil(n / 8)]: weight i is bit i % 8 of byte i // 8; padding is 1."""
    bits = mask.new_ones(-(-mask.numel() // 8) * 8, dtype=torch.uint8)
    bits[: mask.numel()] = mask.flatten()
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (bits.view(-1, 8) << places).sum(1, dtype=torch.uint8)


def bytes_as_rows(device: torch.device) -> Tensor:
    """Returns the eight bits of each byte, float32 [256, 8]: unpacking takes one look-up per eight weights."""
    places = torch.arange(8, device=device)
    return (torch.arange(256, device=device)[:, None] >> places & 1).float()


def unpack(packed: Tensor, shape: torch.Size, rows: Tensor) -> Tensor:
    """Unpacks a mask to float32 of `shape`: 1 kept, 0 pruned. `rows` is the table of `bytes_as_rows`."""
    return rows.index_select(0, packed.int()).view(-1)[: shape.numel()].view(shape)


def keys_of(scores: Tensor) -> Tensor:
    """Maps `scores` of any shape to int32 keys [n] in the order of their float32 values; -0 and 0 are equal."""
    bits = (scores.float() + 0.0).flatten().view(torch.int32)
    return bits ^ (bits >> 31 & 0x7FFFFFFF)


def smallest(keys: list[Callable[[], Tensor]], k: int, device: torch.device) -> Iterator[Tensor]:
    """Marks the k smallest of all keys, as bool [n_l] for each part in turn; ties go to the first by position.

    Each of `keys` returns int32 [n_l] and is called three times with the same result, so that only one part is in
    memory. The k-th key is found by its upper and then its lower 16 bits, in two histograms of 65536 bins, without a
    read by the host.
    """
    if k == 0:
        for part in keys:
            yield torch.zeros_like(part(), dtype=torch.bool)
        return
    left = torch.full((1,), k, dtype=torch.int64, device=device)
    upper, left = _bin(_histogram(((part() >> 16) + _BINS // 2 for part in keys), device), left)
    lower, left = _bin(_histogram((_lower(part(), upper) for part in keys), device), left)
    border = ((upper - _BINS // 2) << 16 | lower).int()
    before = torch.zeros((), dtype=torch.int64, device=device)
    for part in keys:
        own = part()
        equal = own == border
        place = equal.cumsum(0) + before
        yield (own < border) | (equal & (place <= left))
        before = place[-1]


def _lower(keys: Tensor, upper: Tensor) -> Tensor:
    """Returns the lower 16 bits of keys with upper bits in bin `upper`; all other keys share one extra bin."""
    return torch.where((keys >> 16) + _BINS // 2 == upper, keys & (_BINS - 1), _BINS)


def _histogram(parts: Iterator[Tensor], device: torch.device) -> Tensor:
    counts = torch.zeros(_BINS + 1, dtype=torch.int64, device=device)
    for bins in parts:
        if device.type == "cpu":
            counts += torch.bincount(bins, minlength=_BINS + 1)
        else:  # bincount reads the maximum from the device
            counts.scatter_add_(0, bins.long(), torch.ones_like(bins, dtype=torch.int64))
    return counts[:_BINS]


def _bin(counts: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the bin that holds the k-th element, and the rank of the element inside that bin."""
    upto = counts.cumsum(0)
    found = torch.searchsorted(upto, k)
    return found, k - (upto[found] - counts[found])
