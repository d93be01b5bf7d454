"""Shared checks of the attention operations: devices with kernels, requirements on inputs, layout of results."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ratrain.kernels.tuning import serves, size_of

HEAD_DIMS = (32, 64, 128)  # the head_dims for which the kernels have tiles
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def on_kernels(x: Tensor) -> bool:
    """Whether kernels exist for x's device and dtype: on a GPU, and on a CPU under Triton's interpreter."""
    return x.dtype in DTYPES and (x.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")


def runs_kernel(op: str, q: Tensor) -> bool:
    """Whether the op's kernel runs for these queries; false if their width has no tile without spills."""
    return on_kernels(q) and q.shape[-1] in HEAD_DIMS and _has_tile(op, q.shape[-1], q.dtype == torch.float32)


def _has_tile(op: str, channels: int, exact: bool) -> bool:
    return serves(op, size_of(channels, torch.float32 if exact else torch.bfloat16))


# a constant in a graph, which cannot contain the reading of a file. torch.compiler.assume_constant_result sets only
# this mark, but imports torch._dynamo for it, which takes as long as importing torch, even if nothing is compiled
_has_tile._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_qkv(op: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raises ValueError unless q, k, v have one shape [B, H, T, D], one dtype and one device, and, off the CPU, fit the
    kernel."""
    if q.dim() != 4 or k.shape != q.shape or v.shape != q.shape or not all(q.shape):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"{op}: q, k, v must be alike [B, H, T, D] and hold something, got {shapes}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"{op}: q, k, v must be of one dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.device == k.device == v.device:
        raise ValueError(f"{op}: q, k, v must be on one device, got {q.device}, {k.device}, {v.device}")
    if q.device.type != "cpu":
        check_kernel(op, q, k, v)


def check_kernel(op: str, *tensors: Tensor) -> None:
    """Raises ValueError if the kernel cannot take q, k and v, though the definition could."""
    for x in tensors:
        if x.shape[-1] not in HEAD_DIMS:
            raise ValueError(f"{op}: D must be one of {HEAD_DIMS} on a GPU, got {x.shape[-1]}")
        if x.dtype not in DTYPES:
            raise ValueError(f"{op}: q, k and v must be fp32, fp16 or bf16 on a GPU, got {x.dtype}")
        if x.stride(-1) != 1:
            raise ValueError(f"{op}: the channels of q, k and v must lie side by side (stride 1)")
        if x.shape[2] * max(x.stride(2), x.shape[1] * x.shape[3]) >= 1 << 31:  # offsets in a sequence have 32 bits
            raise ValueError(f"{op}: a sequence of q, k or v spans 2^31 elements or more; shorten it")


def laid_out(x: Tensor) -> Tensor:
    """Returns x [B, H, T, D], stored as [B, T, H, D], so that heads flatten without a copy."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def like(q: Tensor) -> Tensor:
    """Returns an empty [B, H, T, D], stored as [B, T, H, D]."""
    batch, n_head, n_token, head_dim = q.shape
    return q.new_empty(batch, n_token, n_head, head_dim).transpose(1, 2)
