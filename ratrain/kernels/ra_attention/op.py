"""Reciprocal attention in one operation: a gate per score channel, and scores in the other direction."""

from __future__ import annotations

import torch
from torch import Tensor

from ratrain.kernels.placement import check_qkv, laid_out, like, runs_kernel

from . import reference


def ra_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    *,
    w_r: Tensor | None = None,
    bias: Tensor | None = None,
    alpha: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Causal attention with score_ij = scale ((gate * q_i) . k_j + w_r k_i . q_j) + bias_j; [B, H, T, D].

    q, k, v: [B, H, T, D], for instance views of a packed projection: their channels must be contiguous. gate:
    [H, D]; w_r, alpha: [H]; bias: [B, H, T]; all fp32 (float64 if q is). alpha blends: (1 - alpha) o + alpha v.
    scale: 1 / sqrt(D) unless given. The result is stored as [B, T, H, D], so that heads flatten without a copy.
    Raises ValueError on shapes, dtypes, devices or strides that do not fit; on a GPU D must be 32, 64 or 128.
    """
    _check(q, k, v, gate, w_r, bias, alpha)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _forward(q, k, v, gate.contiguous(), w_r, bias, alpha, scale)[0]


def _check(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, *others: Tensor | None) -> None:
    check_qkv("ra_attention", q, k, v)
    batch, n_head, n_token, head_dim = q.shape
    wanted = {"gate": (n_head, head_dim), "w_r": (n_head,), "bias": (batch, n_head, n_token), "alpha": (n_head,)}
    for (name, shape), given in zip(wanted.items(), (gate, *others), strict=True):
        if given is not None and tuple(given.shape) != shape:
            raise ValueError(f"ra_attention: {name} must be {shape}, got {tuple(given.shape)}")
        if given is not None and given.dtype != torch.promote_types(q.dtype, torch.float32):
            raise ValueError(f"ra_attention: {name} must be fp32, got {given.dtype}")
        if given is not None and given.device != q.device:
            raise ValueError(f"ra_attention: {name} must be on the device of q, {q.device}, got {given.device}")


@torch.library.custom_op("ratrain::ra_attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, w_r: Tensor | None, bias: Tensor | None, alpha: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns y; o if the kernel ran with alpha; the log of each row's sum [B, H, T] if the kernel ran; else empty."""
    if runs_kernel("ra_attention", q):
        from . import kernel  # imports Triton, so only if the kernel runs

        return kernel.forward(q, k, v, gate, w_r, bias, alpha, scale)
    y = reference.forward(q, k, v, gate, *_filled(q, w_r, bias, alpha), scale)
    return laid_out(y), q.new_empty(0), q.new_empty(0)


@_forward.register_fake
def _(q, k, v, gate, w_r, bias, alpha, scale):
    def none() -> Tensor:
        return q.new_empty(0)

    blended, kernel = alpha is not None, runs_kernel("ra_attention", q)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32) if kernel else none()
    return like(q), like(q) if blended and kernel else none(), lse


@torch.library.custom_op("ratrain::ra_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, gate: Tensor,
    w_r: Tensor | None, bias: Tensor | None, alpha: Tensor | None, plain: Tensor, lse: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, gate, w_r, bias, alpha; an empty tensor for an input of None."""
    if runs_kernel("ra_attention", q):
        from . import kernel

        return kernel.backward(grad, q, k, v, gate, w_r, bias, alpha, plain, lse, scale)
    wide, others = reference.backward(grad, q, k, v, gate, *_filled(q, w_r, bias, alpha), scale), (w_r, bias, alpha)
    d_q, d_k, d_v = map(laid_out, wide[:3])
    small = [q.new_empty(0) if of is None else d for d, of in zip(wide[4:], others, strict=True)]
    return d_q, d_k, d_v, wide[3], *small  # type: ignore[return-value]


@_backward.register_fake
def _(grad, q, k, v, gate, w_r, bias, alpha, plain, lse, scale):
    small = [q.new_empty(0) if of is None else torch.empty_like(of) for of in (w_r, bias, alpha)]
    return like(q), like(q), like(q), torch.empty_like(gate), *small


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    y, o, lse = output
    ctx.mark_non_differentiable(o, lse)
    ctx.save_for_backward(*tensors, o if o.numel() else y, lse)


def _differentiate(ctx, grad: Tensor, *_unused: Tensor):
    *inputs, plain, lse = ctx.saved_tensors
    if grad.stride(-1) != 1:
        grad = grad.contiguous()
    found = _backward(grad, *inputs, plain, lse, ctx.scale)
    return *(None if of is None else d for d, of in zip(found, inputs, strict=True)), None


_forward.register_autograd(_differentiate, setup_context=_save)


def _filled(q: Tensor, w_r: Tensor | None, bias: Tensor | None, alpha: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns w_r, bias and alpha for the reference, zeros in place of None."""
    return (
        q.new_zeros(q.shape[1]) if w_r is None else w_r,
        q.new_zeros(q.shape[:3]) if bias is None else bias,
        q.new_zeros(q.shape[1]) if alpha is None else alpha,
    )
