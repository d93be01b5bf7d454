"""Head projection and cross-entropy in one operation that never holds N x V logits.

The rows go through in chunks. Where gradients are wanted, each chunk's d_logits is turned at once into its share of
d_x and d_weight, so that the backward pass only scales them: recomputing the logits there would cost a fourth
product of the size of the head (the idea is Liger-Kernel's fused linear cross-entropy, arXiv:2410.10989).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ratrain.kernels.placement import on_kernels
from ratrain.kernels.products import by_onednn, product

# one chunk of fp32 logits: stays in a CPU's caches, and is large enough for a GPU's matmul
_CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
_MIN_ROWS = 256  # below this each chunk spends more time adding to d_weight than multiplying (V 50304, CPU)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, n_class: int | None = None, ignore: int = -1, z_loss: float = 0.0,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:  # fmt: skip
    """Mean cross-entropy of `x @ weight.T` against targets, in nats; 0-d, fp32 (float64 stays).

    With `reduction` "none" the loss of each row, [...], 0 where it is ignored; it has no gradient.

    x: [..., C], weight: [V, C] with V >= n_class, targets: [...] int64. Rows whose target is `ignore` count neither
    in the sum nor in the mean. Columns from n_class on (padding of the table) are never predicted. Products run in
    x's dtype, or in autocast's where that is on; sums and d_weight accumulate in fp32.
    z_loss: weight of the mean of logsumexp(logits)^2 (PaLM, Chowdhery et al. 2022, arXiv:2204.02311, section 5), which
    enters the gradient; the value stays the cross-entropy, which can be compared with an evaluation's.
    Raises ValueError on shapes or dtypes that do not fit, and where losses of rows are asked for a gradient.
    """
    n_class = weight.shape[0] if n_class is None else n_class
    _check(x, weight, targets, n_class)
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    wants_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if wants_grad and reduction == "none":
        raise ValueError("linear_cross_entropy: losses of rows have no gradient; ask under no_grad, or for the mean")
    rows = x.flatten(0, -2)
    total, count, losses, _, _ = _forward(rows, weight, targets.flatten(), n_class, ignore, z_loss, dtype, wants_grad)
    return losses.view(targets.shape) if reduction == "none" else total / count.clamp(min=1)


def _check(x: Tensor, weight: Tensor, targets: Tensor, n_class: int) -> None:
    if weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear_cross_entropy: x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit")
    if targets.shape != x.shape[:-1]:
        raise ValueError(f"linear_cross_entropy: expected targets {tuple(x.shape[:-1])}, got {tuple(targets.shape)}")
    if targets.dtype != torch.int64:
        raise ValueError(f"linear_cross_entropy: targets must be int64, got {targets.dtype}")
    if not 0 < n_class <= weight.shape[0]:
        raise ValueError(f"linear_cross_entropy: n_class must be between 1 and {weight.shape[0]}, got {n_class}")


@torch.library.custom_op("ratrain::linear_cross_entropy", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor, targets: Tensor, n_class: int, ignore: int, z_loss: float, dtype: torch.dtype,
    wants_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Summed loss, count of rows, the loss of each row, and the gradients of the sum for x and weight (empty unless
    wanted)."""
    wide = torch.promote_types(x.dtype, torch.float32)  # sums: fp32, or float64 in tests
    w = weight.to(dtype)
    total, losses = torch.zeros((), dtype=wide, device=x.device), torch.empty(len(x), dtype=wide, device=x.device)
    d_x = torch.empty_like(x) if wants_grad else x.new_empty(0)
    d_weight = _zeros(x, weight, wide) if wants_grad else weight.new_empty(0)
    step = _rows(x, weight)
    fused = on_kernels(w) and on_kernels(x)
    # one for all chunks: on a CPU, memory fresh from the system costs more than a pass over it
    buffer = torch.empty(0 if fused else min(step, len(x)), len(w), dtype=wide, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            rows, counted = x[part].to(dtype), (targets[part] != ignore)[:, None]  # [n, C], [n, 1]
            if fused:
                options = {"n_class": n_class, "ignore": ignore, "z_loss": z_loss, "wants_grad": wants_grad}
                losses[part] = _fused(rows, w, targets[part], d_x[part], d_weight, **options)
                total += losses[part].sum()
                continue
            index = targets[part, None].where(counted, 0)
            norm, picked, probs = _softmax(rows, w, index, n_class, buffer[: len(rows)])
            losses[part] = (norm - picked).where(counted, 0)[:, 0]
            total += losses[part].sum()
            if wants_grad:
                if z_loss:
                    probs *= 1 + 2 * z_loss * norm
                d_logits = probs.scatter_add_(1, index, torch.full_like(index, -1, dtype=wide)).to(dtype)
                d_x[part] = product(d_logits, w) * counted
                _add_product(d_weight, d_logits.T, rows * counted)
    count = (targets != ignore).sum()
    return total, count, losses, d_x, d_weight.to(weight.dtype)


def _fused(
    rows: Tensor, w: Tensor, targets: Tensor, d_x: Tensor, d_weight: Tensor, *, n_class: int, ignore: int,
    z_loss: float, wants_grad: bool,
) -> Tensor:  # fmt: skip
    """The losses of a chunk's rows by the kernel, which leaves the gradient where the logits were."""
    from . import kernel

    logits = rows @ w.T
    losses = kernel.losses_and_gradient(
        logits, targets, n_class=n_class, ignore=ignore, z_loss=z_loss, wants_grad=wants_grad
    )
    if wants_grad:
        d_x.copy_(logits @ w)
        _add_product(d_weight, logits.T, rows)
    return losses


def _rows(x: Tensor, weight: Tensor) -> int:
    budget = _CHUNK_BYTES.get(x.device.type, _CHUNK_BYTES["cuda"])
    return max(_MIN_ROWS, budget // (4 * weight.shape[0]))


def _softmax(rows: Tensor, w: Tensor, index: Tensor, n_class: int, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows [n, C]: logsumexp and the logit at `index`, [n, 1] each, and the probabilities, in `out` [n, V].

    Each pass over [n, V] shows in the time of a step: this makes two, beside the product and a softmax in place.
    """
    if by_onednn(rows, w):
        logits = out = product(rows, w.T)
    else:
        logits = torch.mm(rows, w.T, out=out) if w.dtype == out.dtype else out.copy_(rows @ w.T)
    logits[:, n_class:] = float("-inf")
    picked, largest = logits.gather(1, index), logits.amax(-1, keepdim=True)
    probs = torch.softmax(logits, -1, out=out)  # in place: an element is read for the last time before it is written
    norm = largest - probs.amax(-1, keepdim=True).log()  # logsumexp: the largest probability is exp(largest - norm)
    return norm, picked, probs


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a @ b; where dtypes allow it, without a second array of the total's size."""
    if by_onednn(a, b):
        total.T.add_(product(b.T.contiguous(), a.T))
    elif total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


def _zeros(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """For the gradient of weight [V, C]: it lies transposed where oneDNN forms it, which is faster at wide results."""
    if by_onednn(x, weight):
        return torch.zeros(weight.shape[::-1], dtype=dtype).T
    return torch.zeros_like(weight, dtype=dtype)


@_forward.register_fake
def _(x, weight, targets, n_class, ignore, z_loss, dtype, wants_grad):
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.new_empty((), dtype=wide)
    d_x = torch.empty_like(x) if wants_grad else x.new_empty(0)
    d_weight = _zeros(x, weight, weight.dtype) if wants_grad else weight.new_empty(0)
    return total, targets.new_empty(()), x.new_empty(len(x), dtype=wide), d_x, d_weight


def _save(ctx, inputs, output) -> None:
    ctx.wants_grad = inputs[-1]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[3:])


def _backward(ctx, grad: Tensor, *_unused: Tensor):
    d_x, d_weight = ctx.saved_tensors
    assert ctx.wants_grad, "linear_cross_entropy: the gradients were not formed in the forward pass"
    # grad is 0-d: it scales in its own precision and does not widen the product
    return d_x * grad, (d_weight * grad).contiguous(), None, None, None, None, None, None


_forward.register_autograd(_backward, setup_context=_save)
