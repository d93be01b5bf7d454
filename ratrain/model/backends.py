"""Causal attention computed by one of several backends: SDPA's own, or our kernel.

The choice stands in the graph and not in torch's process-wide flags: torch 2.13 keeps compiled code on disk under a key
that knows nothing of those flags, and would hand a run pinned to `math` what an earlier one compiled for `flash`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import attention
from torch.nn.attention import SDPBackend, sdpa_kernel

from ratrain.kernels.placement import runs_kernel
from ratrain.kernels.ra_attention import ra_attention

SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# other implementations of flash, where their package is installed: by torch's registry, which is process-wide
FLASH = {"fa3": "FA3", "fa4": "FA4"}
OURS = "ours"  # ra_attention with gates of one, which is plain attention


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, backends: tuple[str, ...] = (), dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """q, k [B, H, T, D] and v [B, H, T, Dv] -> [B, H, T, Dv], by the first of `backends` that can serve them.

    Empty `backends`: as torch chooses. `ours` counts where it comes first. Raises torch's RuntimeError where none can.
    """
    options = {"is_causal": True, "dropout_p": dropout, "scale": scale}
    if not backends:
        return F.scaled_dot_product_attention(q, k, v, **options)
    if backends[0] == OURS and not dropout:
        q, k, v = _autocast(q, k, v)
        if _ours_serves(q, k, v):
            gate = q.new_ones(q.shape[1], q.shape[3], dtype=torch.promote_types(q.dtype, torch.float32))  # [H, D]
            return ra_attention(q, k, v, gate, scale=scale)
    sdpa = dict.fromkeys(SDPA["flash" if name in FLASH else name] for name in backends if name != OURS)
    # in this order: torch's own has math before cudnn on most GPUs, and never gets to cudnn where both are allowed
    with sdpa_kernel(list(sdpa), set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, **options)


def activate(backend: str) -> None:
    """Has torch's flash attention be the implementation that `backend` names; torch's own for every other backend.

    To be called outside of compiled code. Raises ImportError or RuntimeError where it is not installed or cannot serve
    this GPU, and ValueError where torch knows no such implementation.
    """
    active = attention.current_flash_attention_impl() if hasattr(attention, "current_flash_attention_impl") else None
    wanted = FLASH.get(backend)
    if wanted == active:
        return
    if wanted is None:
        attention.restore_flash_attention_impl()
    elif hasattr(attention, "activate_flash_attention_impl"):
        attention.activate_flash_attention_impl(wanted)
    else:
        raise ValueError(f"torch {torch.__version__} has no registry of flash implementations")


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As autocast hands them to SDPA; it does not know our operation."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(kind)) for x in tensors)


def _ours_serves(q: Tensor, k: Tensor, v: Tensor) -> bool:
    alike = q.shape == k.shape == v.shape and q.dtype == k.dtype == v.dtype
    if q.device.type == "cpu":  # where the operation is its definition, in plain PyTorch
        return alike and q.dtype in (torch.float32, torch.float64)
    return alike and runs_kernel("ra_attention", q) and all(x.stride(-1) == 1 for x in (q, k, v))
