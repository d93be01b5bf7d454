"""Keeps the pruned weights of an optimizer at zero and selects further weights to prune."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ratrain.config.schema import PruneSection
from ratrain.recipe.groups import Group
from ratrain.recipe.optim._contract import Divided
from ratrain.recipe.prune import scores
from ratrain.recipe.prune.masks import GONE, STAYS, bytes_as_rows, keys_of, pack, smallest, unpack
from ratrain.recipe.prune.schedule import apportion, shares

MARKS = _MASK, _SCORE = "mask|", "movement|"  # prefixes of tensor names in a checkpoint
EMBEDDING = "wte.weight"


@dataclass
class _Part:
    """One matrix: `mask` of the whole is packed, `movement` is the accumulated movement score.

    Of a matrix that is divided among processes, `weight` and `movement` are the rows of this process.
    """

    name: str
    weight: nn.Parameter
    mask: Tensor
    movement: Tensor | None
    divided: Divided | None

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole matrix."""
        return self.divided.shape if self.divided else self.weight.shape

    def whole(self, own: Tensor) -> Tensor:
        return self.divided.whole(own) if self.divided else own

    def own(self, whole: Tensor) -> Tensor:
        return self.divided.own(whole) if self.divided else whole


class Pruner:
    """Holds masks of the blocks' matrices and, with `section.embedding`, of the token table, which comes last.

    The train step (`engine/step.py`) calls its hooks `gradients_ready`, `before_update`, `after_update`. A pruned
    weight and all its moments are zero; an elementwise optimizer keeps them at zero.
    """

    def __init__(self, section: PruneSection, groups: Sequence[Group], optimizer: Optimizer):
        self.section, self._optimizer = section, optimizer
        named = {name: w for group in groups for name, w in zip(group.names, group.parameters, strict=True)}
        names = [name for group in groups if group.matrices for name in group.names]
        self._parts = [self._part(name, named[name]) for name in names + [EMBEDDING] * section.embedding]
        self._device = self._parts[0].weight.device
        self._rows = bytes_as_rows(self._device)
        self._dense: list[Tensor] = []  # gradients before masking, if the next mask update needs them
        self._wanted, self._last = None, False
        self._counts = [0] * len(self._parts)  # pruned per matrix, unless shares are global
        self.weights = sum(part.shape.numel() for part in self._parts)
        self.pruned = 0  # pruned weights, counted without a read from the device
        self.reached = False  # masks are final

    def _part(self, name: str, weight: nn.Parameter) -> _Part:
        movement = torch.zeros_like(weight, requires_grad=False) if self.section.kind == "movement" else None
        divided = getattr(self._optimizer, "divided", {}).get(weight)
        part = _Part(name, weight, torch.empty(0), movement, divided)
        part.mask = pack(torch.ones(part.shape, dtype=torch.bool, device=weight.device))
        return part

    @property
    def names(self) -> list[str]:
        return [part.name for part in self._parts]

    @property
    def sparsity(self) -> float:
        return self.pruned / self.weights

    # -- in a step ----------------------------------------------------------------------------------------------

    def expect(self, sparsity: float, *, last: bool = False) -> None:
        """Requests a mask update to `sparsity` after the coming step; with `last` the masks become final."""
        self._wanted, self._last = sparsity, last

    def gradients_ready(self) -> None:
        """Masks the gradients of pruned weights, before the norm is computed; keeps dense copies for regrowth."""
        if self._wanted is not None and self.section.regrow:
            grads = [part.weight.grad for part in self._parts]
            self._dense = [
                torch.zeros_like(p.weight) if g is None else g.clone() for p, g in zip(self._parts, grads, strict=True)
            ]
        for part in self._parts if self.pruned else ():
            if part.weight.grad is not None:
                part.weight.grad.mul_(part.own(self._mask(part)))

    @torch.no_grad()
    def before_update(self) -> None:
        """Accumulates movement scores from the weights before the update; the optimizer holds the clipping divisor."""
        if self.section.kind == "movement" and not self.reached:
            divisor, skipped = self._optimizer.grad_scale, self._optimizer.found_inf  # type: ignore[attr-defined]
            for part in self._parts:
                if part.movement is not None and part.weight.grad is not None:
                    scores.add_movement(part.movement, part.weight, part.weight.grad, divisor, skipped)

    def after_update(self) -> None:
        """Updates the masks if `expect` requested it, and keeps pruned weights at zero."""
        looks = self._wanted is not None
        if self._wanted is not None:
            self._look(self._wanted)
            self.reached = self._last
        if looks or (self.pruned and not getattr(self._optimizer, "elementwise", True)):
            self.apply()
        self._wanted, self._dense = None, []

    def count(self, sparsity: float) -> int:
        """Returns the number of pruned weights at `sparsity`: floor(sparsity x weights); it never decreases."""
        return max(self.pruned, math.floor(sparsity * self.weights + 1e-6))  # 0.3 x 10 is 2.9999999999999996

    # -- selection ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _look(self, sparsity: float) -> None:
        """Prunes to `sparsity`, distributed over the matrices by `section.shares`."""
        whole = self.count(sparsity)
        if self.section.shares == "global":
            self._choose(self._parts, whole)
            self.pruned = whole
            return
        sizes = [part.shape.numel() for part in self._parts]
        wanted = [s * n for s, n in zip(shares(self.section.shares, sizes, sparsity), sizes, strict=True)]
        self._counts = apportion(self._counts, wanted, whole)
        for part, count in zip(self._parts, self._counts, strict=True):
            self._choose([part], count)
        self.pruned = whole

    def _choose(self, parts: list[_Part], count: int) -> None:
        """Prunes `count` weights of `parts`, beginning with the weights that are already pruned."""
        stays = sum(part.shape.numel() for part in parts) - count
        exchanged = int(self.section.regrow * stays) if self.pruned and not self._last else 0
        self._write(parts, [partial(self._keys, part) for part in parts], count + exchanged)
        if exchanged:  # some of the pruned weights regrow from zero
            self.apply()
            self._write(parts, [partial(self._keys_by_gradient, part) for part in parts], count)

    def _write(self, parts: list[_Part], keys: list[Callable[[], Tensor]], count: int) -> None:
        gone = smallest(keys, count, self._device)
        fresh = [pack(~out) for out in gone]  # all masks before the first write: keys are read three times
        for part, mask in zip(parts, fresh, strict=True):
            part.mask.copy_(mask)

    def _keys(self, part: _Part) -> Tensor:
        return torch.where(self._mask(part).flatten() > 0, keys_of(part.whole(self._scores(part))), GONE)

    def _keys_by_gradient(self, part: _Part) -> Tensor:
        dense = self._dense[self._parts.index(part)]
        return torch.where(self._mask(part).flatten() > 0, STAYS, keys_of(part.whole(dense.abs())))

    def _scores(self, part: _Part) -> Tensor:
        weight = part.weight.detach()
        if part.movement is not None:
            return part.movement
        state = self._optimizer.state.get(part.weight, {})
        if self.section.score is None or "exp_avg" not in state:  # a weight without gradient has no moments
            return scores.magnitude(weight)
        (beta, _), step = self._betas(part.weight), state["step"].clamp(min=1)
        return scores.STATE[self.section.score](
            weight, scores.Moments(state["exp_avg"], state["exp_avg_sq"], 1 - beta**step)
        )

    def _betas(self, weight: nn.Parameter) -> tuple[float, float]:
        return next(g["betas"] for g in self._optimizer.param_groups if any(p is weight for p in g["params"]))

    # -- masks --------------------------------------------------------------------------------------------------

    def _mask(self, part: _Part) -> Tensor:
        return unpack(part.mask, part.shape, self._rows)

    @torch.no_grad()
    def apply(self) -> None:
        """Zeros pruned weights and their optimizer state."""
        for part in self._parts:
            mask = part.own(self._mask(part))
            state = self._optimizer.state.get(part.weight, {})
            for tensor in (part.weight, *(t for t in state.values() if t.shape == part.weight.shape)):
                tensor.mul_(mask)

    def masks(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the mask of each weight, with its name: bool, True for kept weights."""
        for part in self._parts:
            yield part.name, part.own(self._mask(part)) > 0

    def digest(self) -> int:
        """Returns a CRC-32 of the masks to compare between processes; reads from the device."""
        sums = 0
        for part in self._parts:
            sums = zlib.crc32(part.mask.cpu().numpy().tobytes(), sums)
        return sums

    # -- in a checkpoint ----------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        kept = {f"{_MASK}{part.name}": part.mask for part in self._parts}
        return kept | {f"{_SCORE}{p.name}": p.movement for p in self._parts if p.movement is not None}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state with the names of the matrices, for readers without the masks, and the section."""
        asked = self.section.model_dump(mode="json", exclude_none=True)
        now = {"pruned": self.pruned, "counts": self._counts, "reached": self.reached}
        return {**now, "matrices": self.names, "section": asked}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self.pruned, self._counts, self.reached = state["pruned"], list(state["counts"]), state["reached"]


def masks_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the packed masks of a checkpoint, by weight."""
    return {name.removeprefix(_MASK): packed for name, packed in tensors.items() if name.startswith(_MASK)}
