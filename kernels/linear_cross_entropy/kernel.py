# pyright: reportCallIssue=false, reportArgumentType=false
# (a launch passes what the compiled kernel takes, and not the parameters that stand here)
"""Triton: a chunk of logits becomes its losses and, in place, its gradient.

The products stay with the vendor's matmul, which no kernel of ours beats; between them the chunk is read twice and
written once, where torch's own softmax, gather and scatter pass over it six times. Sums are in fp32 whatever the
logits are in.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ratrain.kernels.tuning import Case, config


@triton.jit
def _rows_kernel(
    logits, targets, losses, stride, n_class, n_column, ignore, z_loss,
    WANTS_GRAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row a program: losses [n]; logits [n, V] become d loss / d logits, 0 from n_class on and where ignored."""
    row = tl.program_id(0)
    at, target = logits + row.to(tl.int64) * stride, tl.load(targets + row)
    counted = target != ignore
    top, total = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, n_class, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(at + cols, mask=cols < n_class, other=float("-inf")).to(tl.float32)
        new_top = tl.maximum(top, x)
        safe = tl.where(new_top == float("-inf"), 0.0, new_top)
        total, top = total * tl.exp(top - safe) + tl.exp(x - safe), new_top
    largest = tl.max(top, 0)
    norm = largest + tl.log(tl.sum(total * tl.exp(top - largest), 0))
    picked = tl.load(at + tl.where(counted, target, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(counted, norm - picked, 0.0))
    if WANTS_GRAD:
        slope = tl.where(counted, 1.0 + 2 * z_loss * norm, 0.0)
        for start in range(0, n_column, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            x = tl.load(at + cols, mask=cols < n_class, other=float("-inf")).to(tl.float32)
            grad = slope * tl.exp(x - norm) - tl.where(counted & (cols == target), 1.0, 0.0)
            tl.store(at + cols, grad.to(logits.dtype.element_ty), mask=cols < n_column)


POINTERS = {"logits": "input", "targets": "i64", "losses": "fp32"}


def cases() -> Iterator[Case]:
    """What is compiled ahead of time."""
    yield Case("linear_cross_entropy", "rows", "any", _rows_kernel, {"WANTS_GRAD": True}, products=False)


def losses_and_gradient(
    logits: Tensor, targets: Tensor, *, n_class: int, ignore: int, z_loss: float, wants_grad: bool
) -> Tensor:
    """The loss of each row [n], fp32; with `wants_grad` the logits [n, V] become the gradient of the losses' sum."""
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    tile = config("linear_cross_entropy", "rows", "any")
    _rows_kernel[(len(logits),)](
        logits, targets, losses, logits.stride(0), n_class, logits.shape[1], ignore, z_loss,
        WANTS_GRAD=wants_grad, BLOCK=tile.block, num_warps=tile.warps,
    )  # fmt: skip
    return losses
