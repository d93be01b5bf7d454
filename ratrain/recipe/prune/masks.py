"""Masks of one bit per weight, and the k smallest of many scores without sorting or gathering them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_BINS = 1 << 16
GONE = torch.iinfo(torch.int32).min  # below the key of every score
STAYS = torch.iinfo(torch.int32).max


def pack(mask: Tensor) -> Tensor:
    """A bool mask of any shape as uint8 [ceil(n / 8)]: weight i is bit i % 8 of byte i // 8; what is left over is 1."""
    bits = mask.new_ones(-(-mask.numel() // 8) * 8, dtype=torch.uint8)
    bits[: mask.numel()] = mask.flatten()
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (bits.view(-1, 8) << places).sum(1, dtype=torch.uint8)


def bytes_as_rows(device: torch.device) -> Tensor:
    """The eight bits of each byte, as float32 [256, 8]: unpacking by it is one look-up per eight weights."""
    places = torch.arange(8, device=device)
    return (torch.arange(256, device=device)[:, None] >> places & 1).float()


def unpack(packed: Tensor, like: Tensor, rows: Tensor) -> Tensor:
    """The mask as float32 of the shape of `like`: 1 stays, 0 is gone. `rows` is what `bytes_as_rows` gives."""
    return rows.index_select(0, packed.int()).view(-1)[: like.numel()].view(like.shape)


def keys_of(scores: Tensor) -> Tensor:
    """int32 keys [n] in the order of float32 `scores` of any shape; -0 and 0 are equal."""
    bits = (scores.float() + 0.0).flatten().view(torch.int32)
    return bits ^ (bits >> 31 & 0x7FFFFFFF)


def smallest(keys: list[Callable[[], Tensor]], k: int, device: torch.device) -> Iterator[Tensor]:
    """Which of all keys are the k smallest, as bool [n_l] for each part in turn; of equal ones the first by place.

    `keys` give int32 [n_l], the same each time they are called: three times, so that no more than one part of them is
    held. The k-th is found by its upper and then its lower 16 bits, in two histograms of 65536 bins; nothing is read
    by the host.
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
    """The lower 16 bits of those keys whose upper ones are in bin `upper`; a bin of their own for all others."""
    return torch.where((keys >> 16) + _BINS // 2 == upper, keys & (_BINS - 1), _BINS)


def _histogram(parts: Iterator[Tensor], device: torch.device) -> Tensor:
    counts = torch.zeros(_BINS + 1, dtype=torch.int64, device=device)
    for bins in parts:
        if device.type == "cpu":
            counts += torch.bincount(bins, minlength=_BINS + 1)
        else:  # bincount asks the device for the largest
            counts.scatter_add_(0, bins.long(), torch.ones_like(bins, dtype=torch.int64))
    return counts[:_BINS]


def _bin(counts: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The bin that holds the k-th, and which of that bin it is."""
    upto = counts.cumsum(0)
    found = torch.searchsorted(upto, k)
    return found, k - (upto[found] - counts[found])
