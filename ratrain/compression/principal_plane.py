"""Principal components per head, of plain vectors or of vectors warped by fitted monotone splines.

Shape letters: H heads, N vectors, D channels of a vector, K kept channels, S segments of a spline.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ratrain.compression.spline import evaluate, heights_of, invert

_LR, _DECAY = 1e-2, 1e-4  # of AdamW on the spline's parameters
_FEWEST, _MOST = 256, 4096  # vectors in a batch


class Plane(NamedTuple):
    """A projection of vectors x to codes (x - mean) down, and back to code up + mean; up down = 1."""

    mean: Tensor  # [H, 1, D]
    down: Tensor  # [H, D, K]
    up: Tensor  # [H, K, D]

    def project(self, x: Tensor) -> Tensor:  # [H, N, D] -> [H, N, D]
        return (x - self.mean) @ self.down @ self.up + self.mean


def principal_plane(x: Tensor, count: int, root: Tensor | None = None) -> Plane:
    """Fits a plane of `count` dimensions with least mean square error on x [H, N, D], or of x root; root [H, D, D].

    Uses the covariance in float64, so that a fit does not depend on the precision of training.
    """
    x64 = x.double()
    mean = x64.mean(1, keepdim=True)
    centred = x64 - mean if root is None else (x64 - mean) @ root.double()
    basis = torch.linalg.eigh(centred.mT @ centred).eigenvectors.flip(-1)[..., :count]
    down, up = (basis, basis.mT) if root is None else (root.double() @ basis, basis.mT @ root.double().inverse())
    return Plane(*(part.to(x.dtype).contiguous() for part in (mean, down, up)))


def square_root(weights: Tensor) -> Tensor:
    """Returns the symmetric root [H, D, D] of W W^T for W [H, D, C]: |x root| = |x W|."""
    values, basis = torch.linalg.eigh(weights.double() @ weights.double().mT)
    floor = 1e-6 * values.amax(-1, keepdim=True).clamp(min=1e-30)  # a direction without effect must stay invertible
    return (basis * torch.maximum(values, floor).sqrt()[:, None]) @ basis.mT


def fit_slopes(
    x: Tensor, knots: Tensor, count: int, *, epochs: int, root: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Fits spline slopes [H, D, S] that minimise the loss of x [H, N, D] on the plane of warped x; knots [H, D, S + 1].

    AdamW fits a slope per segment, of mean 1 over the range, and a scale per dimension, starting at the plain plane.
    The plane is refitted at each epoch and fixed in between. A shift has no effect: the mean is subtracted.
    """
    raw = torch.zeros_like(knots[..., 1:], requires_grad=True)
    scale = torch.zeros_like(knots[..., :1], requires_grad=True)
    optimizer = torch.optim.AdamW([raw, scale], lr=_LR, weight_decay=_DECAY)
    size = x.shape[1]
    batch = min(size, max(_FEWEST, min(size // 8, _MOST)))
    steps = 0
    for _ in range(epochs):
        with torch.no_grad():
            slopes = _slopes(raw, scale, knots)
            plane = principal_plane(_warp(x, knots, slopes), count, root)
        order = torch.randperm(size, generator=generator).to(x.device)
        for rows in order[: size // batch * batch].split(batch):
            with torch.enable_grad():
                slopes, part = _slopes(raw, scale, knots), x[:, rows]
                lost = _unwarp(plane.project(_warp(part, knots, slopes)), knots, slopes) - part
                lost = lost if root is None else lost @ root.to(lost.dtype)
                loss = lost.square().mean((1, 2)) / part.var((1, 2)).clamp(
                    min=1e-30
                )  # equal weight for heads of different variance
                optimizer.zero_grad()
                loss.sum().backward()
            optimizer.step()
            steps += 1
    assert steps >= epochs, "every epoch has a batch at least"
    return _slopes(raw, scale, knots).detach()


def _slopes(raw: Tensor, scale: Tensor, knots: Tensor) -> Tensor:
    """Returns positive slopes [H, D, S] of mean exp(scale) over the range; scale 0 preserves the range's length."""
    lengths = knots.diff(dim=-1)
    whole = lengths.sum(-1, keepdim=True)
    shares = torch.where(whole > 0, lengths / whole.clamp(min=1e-30), 1 / lengths.shape[-1])  # a constant has no range
    slopes = F.softplus(raw) + 1e-4
    return slopes / (slopes * shares).sum(-1, keepdim=True) * scale.exp()


def _warp(x: Tensor, knots: Tensor, slopes: Tensor) -> Tensor:
    return evaluate(x, *(t[:, None] for t in (knots, heights_of(knots, slopes), slopes)))


def _unwarp(y: Tensor, knots: Tensor, slopes: Tensor) -> Tensor:
    return invert(y, *(t[:, None] for t in (knots, heights_of(knots, slopes), slopes)))
