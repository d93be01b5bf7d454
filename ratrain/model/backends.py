"""Causal attention by one of several backends: those of SDPA, or ratrain's kernel.

The choice is part of the graph, not of torch's process-wide flags. torch 2.13 caches compiled code on disk under a key
that ignores those flags: a run pinned to `math` would load code that an earlier run compiled for `flash`.
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
# other implementations of flash, if their package is installed; selected in torch's process-wide registry
FLASH = {"fa3": "FA3", "fa4": "FA4"}
OURS = "ours"  # ra_attention with gates of one, which is plain attention


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, backends: tuple[str, ...] = (), dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """Attends with q, k [B, H, T, D] and v [B, H, T, Dv] -> [B, H, T, Dv] by the first supported one of `backends`.

    With empty `backends` torch chooses. `ours` is used only if it comes first. Raises torch's RuntimeError if no
    backend supports the inputs.
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
    # in this order: torch's default ranks math before cudnn on most GPUs and never selects cudnn if both are allowed
    with sdpa_kernel(list(sdpa), set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, **options)


def activate(backend: str) -> None:
    """Selects the flash attention implementation that `backend` names; torch's default for every other backend.

    Call it outside of compiled code. Raises ImportError or RuntimeError if the implementation is not installed or does
    not support this GPU, and ValueError if torch has no such implementation.
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
    """Casts tensors as autocast does for SDPA; autocast has no rule for the custom operation."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(kind)) for x in tensors)


def _ours_serves(q: Tensor, k: Tensor, v: Tensor) -> bool:
    alike = q.shape == k.shape == v.shape and q.dtype == k.dtype == v.dtype
    if q.device.type == "cpu":  # here the operation runs its definition in plain PyTorch
        return alike and q.dtype in (torch.float32, torch.float64)
    return alike and runs_kernel("ra_attention", q) and all(x.stride(-1) == 1 for x in (q, k, v))
