"""Head projection and cross-entropy in one operation that never holds N x V logits in fp32.

If gradients are needed, d_logits is turned at once into d_x and d_weight, so that the backward pass only scales them:
recomputing the logits there would cost a fourth product of the size of the head (the idea is Liger-Kernel's fused
linear cross-entropy, arXiv:2410.10989). Rows are processed in chunks. On a CPU a chunk fits in the caches; on a GPU it
takes a fixed share of the memory, in most cases all rows. Each further chunk on a GPU adds to d_weight [V, C] in fp32,
and a short chunk leaves processors idle in d_x.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ratrain.kernels.fp8_linear import product as fp8_product
from ratrain.kernels.fp8_linear import quantise
from ratrain.kernels.fp8_linear import reference as fp8_reference
from ratrain.kernels.fp8_linear.reference import VALUES
from ratrain.kernels.placement import on_kernels
from ratrain.kernels.products import by_onednn, product

_CPU_CHUNK = 4 << 20  # bytes of one chunk of logits, which stays in a CPU's caches
_MIN_ROWS = 256  # below this each chunk spends more time adding to d_weight than multiplying (V 50304, CPU)
_GPU_SHARE = 1 / 16  # of a GPU's memory, that the logits may take: 16384 rows of 50304 bf16 logits on 28 GiB or more
_GPU_ROWS = 2048  # a chunk is a multiple of this: 16 tiles of 128 rows, so that d_x has work for all processors


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, n_class: int | None = None, ignore: int = -1, z_loss: float = 0.0,
    reduction: Literal["mean", "none"] = "mean", fp8: bool = False,
) -> Tensor:  # fmt: skip
    """Mean cross-entropy of `x @ weight.T` against targets, in nats; 0-d, fp32 (float64 stays).

    With `reduction` "none" the loss of each row, [...], 0 for an ignored row; it has no gradient.

    x: [..., C], weight: [V, C] with V >= n_class, targets: [...] int64. Rows whose target is `ignore` count neither
    in the sum nor in the mean. Columns from n_class on (padding of the table) are never predicted. Products run in
    x's dtype, or in autocast's if that is on; sums and d_weight accumulate in fp32.
    fp8: the logits come from 8-bit factors with one scale per tensor, as in `fp8_linear`. The gradients do not:
    rounding d_logits [N, V] once more would move more bytes than faster products save.
    z_loss: weight of the mean of logsumexp(logits)^2 (PaLM, Chowdhery et al. 2022, arXiv:2204.02311, section 5), which
    enters the gradient; the value stays the cross-entropy, which can be compared with an evaluation's.
    Raises ValueError on shapes or dtypes that do not fit, and if `reduction` is "none" while a gradient is needed.
    """
    n_class = weight.shape[0] if n_class is None else n_class
    _check(x, weight, targets, n_class)
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    wants_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if wants_grad and reduction == "none":
        raise ValueError("linear_cross_entropy: losses of rows have no gradient; ask under no_grad, or for the mean")
    rows = x.flatten(0, -2)
    total, count, losses, _, _ = _forward(
        rows, weight, targets.flatten(), n_class, ignore, z_loss, dtype, wants_grad, fp8
    )
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
    wants_grad: bool, fp8: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Summed loss, count of rows, the loss of each row, and the gradients of the sum for x and weight (empty unless
    wanted)."""
    options: dict[str, Any] = {"n_class": n_class, "ignore": ignore, "z_loss": z_loss, "dtype": dtype}
    options |= {"wants_grad": wants_grad, "fp8": fp8}
    run = _by_kernel if x.numel() and on_kernels(weight.new_empty(0, dtype=dtype)) and on_kernels(x) else _by_torch
    with torch.autocast(x.device.type, enabled=False):
        total, losses, d_x, d_weight = run(x, weight, targets, **options)
    return total, (targets != ignore).sum(), losses, d_x, d_weight


def _by_torch(
    x: Tensor, weight: Tensor, targets: Tensor, *, n_class: int, ignore: int, z_loss: float, dtype: torch.dtype,
    wants_grad: bool, fp8: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Summed loss, the loss of each row and both gradients, in plain PyTorch."""
    wide = torch.promote_types(x.dtype, torch.float32)  # sums: fp32, or float64 in tests
    w = weight.to(dtype)
    total, losses = torch.zeros((), dtype=wide, device=x.device), torch.empty(len(x), dtype=wide, device=x.device)
    d_x = torch.empty_like(x) if wants_grad else x.new_empty(0)
    d_weight = _zeros(x, weight, wide) if wants_grad else weight.new_empty(0)
    step = _rows(x, weight)
    eight = fp8_reference.rounded(w, VALUES).to(dtype) if fp8 else w
    # one for all chunks: memory fresh from the system costs more than a pass over it
    buffer = torch.empty(min(step, len(x)), len(w), dtype=wide, device=x.device)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        rows, counted = x[part].to(dtype), (targets[part] != ignore)[:, None]  # [n, C], [n, 1]
        index = targets[part, None].where(counted, 0)
        seen = fp8_reference.rounded(rows, VALUES).to(dtype) if fp8 else rows
        norm, picked, probs = _softmax(seen, eight, index, n_class, buffer[: len(rows)])
        losses[part] = (norm - picked).where(counted, 0)[:, 0]
        total += losses[part].sum()
        if wants_grad:
            if z_loss:
                probs *= 1 + 2 * z_loss * norm
            d_logits = probs.scatter_add_(1, index, torch.full_like(index, -1, dtype=wide)).to(dtype)
            d_x[part] = product(d_logits, w) * counted
            _add_product(d_weight, d_logits.T, rows * counted)
    return total, losses, d_x, d_weight.to(weight.dtype)


def _by_kernel(
    x: Tensor, weight: Tensor, targets: Tensor, *, n_class: int, ignore: int, z_loss: float, dtype: torch.dtype,
    wants_grad: bool, fp8: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Computes the results of `_by_torch` by the kernel, which overwrites the logits with their gradient."""
    from . import kernel

    w, step = weight.to(dtype), _rows(x, weight)
    eight = quantise(w, VALUES) if fp8 else None
    losses = torch.empty(len(x), dtype=torch.float32, device=x.device)
    d_x, d_weight = (torch.empty_like(x), None) if wants_grad else (x.new_empty(0), weight.new_empty(0))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        rows = x[part].to(dtype)
        logits = rows @ w.T if eight is None else fp8_product(quantise(rows, VALUES), eight, dtype)
        kernel.losses_and_gradient(
            logits, targets[part], losses[part], n_class=n_class, ignore=ignore, z_loss=z_loss, wants_grad=wants_grad
        )
        if wants_grad:
            if d_x.dtype == dtype:
                torch.mm(logits, w, out=d_x[part])
            else:
                d_x[part] = logits @ w
            # for a single chunk the product is the sum, and needs no separate fp32 array
            sums = weight.dtype if len(x) <= step else torch.float32
            d_weight = _sum_product(d_weight, logits.T, rows, sums)
    assert d_weight is not None
    return losses.sum(), losses, d_x, d_weight.to(weight.dtype)


def _sum_product(total: Tensor | None, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a @ b plus `total` in `dtype`, in the memory of `total`; the product is rounded once, when complete."""
    if dtype != torch.float32 or a.dtype == dtype or not a.is_cuda or torch.version.hip:
        found = (a @ b).to(dtype)
        return found if total is None else total.add_(found)
    if total is None:
        return torch.mm(a, b, out_dtype=dtype)
    return torch.ops.aten.addmm.dtype_out(total, a, b, dtype, out=total)


def _rows(x: Tensor, weight: Tensor) -> int:
    """Rows of x [N, C] in one chunk."""
    if x.device.type == "cpu":
        return max(_MIN_ROWS, _CPU_CHUNK // (4 * weight.shape[0]))
    memory = torch.cuda.get_device_properties(x.device).total_memory
    most = max(1, int(memory * _GPU_SHARE) // (2 * weight.shape[0] * _GPU_ROWS)) * _GPU_ROWS
    if len(x) <= most:
        return len(x)
    chunks = math.ceil(len(x) / most)
    return math.ceil(len(x) / chunks / _GPU_ROWS) * _GPU_ROWS


def _softmax(rows: Tensor, w: Tensor, index: Tensor, n_class: int, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows [n, C]: logsumexp and the logit at `index`, [n, 1] each, and the probabilities, in `out` [n, V].

    Each pass over [n, V] adds to the time of a step: here two, besides the product and an in-place softmax.
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
    """Adds a @ b to `total`; for equal dtypes without oneDNN, no second array of the total's size is allocated."""
    if by_onednn(a, b):
        total.T.add_(product(b.T.contiguous(), a.T))
    elif total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


def _zeros(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros for the gradient of weight [V, C]; transposed in memory for oneDNN, which is faster at wide results."""
    if by_onednn(x, weight):
        return torch.zeros(weight.shape[::-1], dtype=dtype).T
    return torch.zeros_like(weight, dtype=dtype)


@_forward.register_fake
def _(x, weight, targets, n_class, ignore, z_loss, dtype, wants_grad, fp8):
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.new_empty((), dtype=wide)
    d_x = torch.empty_like(x) if wants_grad else x.new_empty(0)
    d_weight = _zeros(x, weight, weight.dtype) if wants_grad else weight.new_empty(0)
    return total, targets.new_empty(()), x.new_empty(len(x), dtype=wide), d_x, d_weight


def _save(ctx, inputs, output) -> None:
    ctx.wants_grad = inputs[-2]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[3:])


def _backward(ctx, grad: Tensor, *_unused: Tensor):
    d_x, d_weight = ctx.saved_tensors
    assert ctx.wants_grad, "linear_cross_entropy: the gradients were not formed in the forward pass"
    # grad is 0-d: it scales in its own precision and does not widen the product
    return d_x * grad, (d_weight * grad).contiguous(), None, None, None, None, None, None, None


_forward.register_autograd(_backward, setup_context=_save)
