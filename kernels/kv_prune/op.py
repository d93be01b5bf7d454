"""Pruned attention in two operations: who stays in the cache, and attention over those who do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ratrain.kernels.placement import check_qkv, laid_out, like, runs_kernel

from . import reference


def keep(
    q: Tensor,
    k: Tensor,
    *,
    counts: Sequence[int],
    block: int,
    recent: Sequence[int],
    sinks: int = 0,
    order: Tensor | None = None,
    exposure: bool = True,
    both: bool = False,
    active: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Who stays once the queries have been through, block by block; both int32.

    life [B, H, T]: the token from which on a key is gone, T where it stays; kept [B, H, R, T]: at r, in their order,
    the positions before block r that its queries still see. At the end of block r of R = ceil(T / block), but the last,
    counts[r] keys stay: the newest, then the first `sinks`, then the recent[r] newest, then by the attention mass
    received so far, over the number of queries that could see the key with `exposure`; or by `order` [H, T] in place of
    the mass, nonnegative fp32. `both`: keys leave with their values, so that mass is over those who are left. Where
    `active`, 0-d fp32, is 0, all stay. Nothing of this has a gradient. Raises ValueError on what does not fit.
    """
    check_qkv("keep", q, k, k)
    ends = -(-q.shape[2] // block) - 1
    if len(counts) != ends or len(recent) != ends:
        raise ValueError(f"keep: {ends} blocks end before the last, got {len(counts)} counts and {len(recent)} recent")
    if any(not 0 < count <= (r + 1) * block for r, count in enumerate(counts)):
        raise ValueError(f"keep: counts must be from 1 to the tokens so far, got {list(counts)} in blocks of {block}")
    if order is not None and (tuple(order.shape) != (q.shape[1], q.shape[2]) or order.dtype != torch.float32):
        raise ValueError(f"keep: order must be [H, T] in fp32, got {tuple(order.shape)} in {order.dtype}")
    active = q.new_ones((), dtype=torch.float32) if active is None else active
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _keep(q.detach(), k.detach(), order, active, list(counts), list(recent), block, sinks, exposure, both, scale)


def pruned_attention(
    q: Tensor, k: Tensor, v: Tensor, life: Tensor, kept: Tensor, *, counts: Sequence[int], block: int,
    active: Tensor | None = None, scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Softmax attention of each query i over the keys j with j <= i < life_j; q, k, v, y [B, H, T, D].

    life, kept, counts, block and active are those of `keep`. Gradients reach q, k and v. Raises ValueError on shapes,
    dtypes or devices that do not fit.
    """
    check_qkv("pruned_attention", q, k, v)
    if life.shape != q.shape[:3] or life.dtype != torch.int32:
        raise ValueError(f"pruned_attention: life must be int32 {tuple(q.shape[:3])}, got {tuple(life.shape)}")
    active = q.new_ones((), dtype=torch.float32) if active is None else active
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _attend(q, k, v, life, kept, active, list(counts), block, scale)[0]


def decode_kept(
    q: Tensor, keys: Tensor, values: Tensor, mass: Tensor, *, places: Tensor | None = None,
    weight: Tensor | None = None, renormalise: bool = False, scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The newest tokens attend to a cache from which the evicted are gone: y [B, H, S, E], and how much of the
    probability [B, H, S] was spent on values that are there.

    q [B, H, S, D]: the newest S of the tokens in keys [B, H, N, D]. values [B, H, M, E]: of all keys, M = N; or of
    those at `places` [B, H, M] int64, probabilities being over all keys. `weight` [B, H, M]: 0 for a value that only
    other heads hold. `renormalise`: what is spent is brought to 1. mass [B, H, M] grows by what each value received.
    Nothing has a gradient. Raises ValueError on what does not fit.
    """
    batch, n_head, _, head_dim = q.shape
    if keys.shape[:2] != (batch, n_head) or keys.shape[3] != head_dim or keys.dtype != q.dtype:
        raise ValueError(f"decode_kept: keys {tuple(keys.shape)} do not fit q {tuple(q.shape)}")
    n_value = keys.shape[2] if places is None else places.shape[2]
    wanted = {"values": values.shape[:3], "mass": mass.shape, **({} if weight is None else {"weight": weight.shape})}
    for name, shape in wanted.items():
        if tuple(shape) != (batch, n_head, n_value):
            raise ValueError(f"decode_kept: {name} must be {(batch, n_head, n_value)} first, got {tuple(shape)}")
    scale = head_dim**-0.5 if scale is None else scale
    return _decode(q.detach(), keys, values, mass, places, weight, renormalise, scale)


def best(order: Tensor, keep: int | Tensor) -> tuple[Tensor, Tensor]:
    """Who is among the `keep` first, 1 or 0 in the dtype of order, and the place of each, int64: 0 for the highest.

    order [B, H, n], highest first; of equals the first comes first. keep: for all, or [H]. Nothing has a gradient.
    """
    # an operation of its own: the compiler would write kernels around the sort anew for every block of queries
    most, share = (0, keep.detach()) if isinstance(keep, Tensor) else (keep, None)
    return _best(order.detach(), most, share)


@torch.library.custom_op("ratrain::kv_best", mutates_args=())
def _best(order: Tensor, most: int, share: Tensor | None) -> tuple[Tensor, Tensor]:
    found = order.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(found)
    place = torch.empty_like(found).scatter_(-1, found, places)
    return (place < (most if share is None else share[:, None])).to(order.dtype), place


@_best.register_fake
def _(order, most, share):
    return torch.empty_like(order), torch.empty_like(order, dtype=torch.int64)


@torch.library.custom_op("ratrain::decode_kept", mutates_args=("mass",))
def _decode(
    q: Tensor, keys: Tensor, values: Tensor, mass: Tensor, places: Tensor | None, weight: Tensor | None,
    renormalise: bool, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    # a prompt's many queries, and codes of odd widths, are left to the vendor's products
    if q.shape[2] == 1 and all(runs_kernel("kv_prune", x) for x in (q, values)):
        from . import kernel

        return kernel.decode(q, keys, values, mass, places, weight, renormalise=renormalise, scale=scale)
    y, total, received = reference.decode(q, keys, values, places, weight, renormalise=renormalise, scale=scale)
    mass += received
    return y, total


@_decode.register_fake
def _(q, keys, values, mass, places, weight, renormalise, scale):
    wide = torch.promote_types(q.dtype, torch.float32)
    return values.new_empty(*q.shape[:3], values.shape[3]), q.new_empty(q.shape[:3], dtype=wide)


@torch.library.custom_op("ratrain::kv_keep", mutates_args=())
def _keep(
    q: Tensor, k: Tensor, order: Tensor | None, active: Tensor, counts: list[int], recent: list[int], block: int,
    sinks: int, exposure: bool, both: bool, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if runs_kernel("kv_prune", q):
        from . import kernel

        return kernel.keep(
            q, k, order, active, counts=tuple(counts), recent=tuple(recent), block=block, sinks=sinks,
            exposure=exposure, both=both, scale=scale,
        )  # fmt: skip
    n_token = q.shape[2]
    counts = counts if active > 0 else [(r + 1) * block for r in range(len(counts))]
    life = reference.keep(
        q, k, order, counts=counts, recent=recent, block=block, sinks=sinks, exposure=exposure, both=both, scale=scale
    )
    return life, reference.listed(life, block, n_token)


@_keep.register_fake
def _(q, k, order, active, counts, recent, block, sinks, exposure, both, scale):
    batch, n_head, n_token, _ = q.shape
    life = q.new_empty(batch, n_head, n_token, dtype=torch.int32)
    return life, q.new_empty(batch, n_head, -(-n_token // block), n_token, dtype=torch.int32)


@torch.library.custom_op("ratrain::pruned_attention", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, life: Tensor, kept: Tensor, active: Tensor, counts: list[int], block: int,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y, and the log of each row's sum [B, H, T] where the kernel ran, else nothing."""
    if runs_kernel("kv_prune", q):
        from . import kernel

        return kernel.attend(q, k, v, kept, active, counts=tuple(counts), block=block, scale=scale)
    return laid_out(reference.forward(q, k, v, life, scale)), q.new_empty(0)


@_attend.register_fake
def _(q, k, v, life, kept, active, counts, block, scale):
    return like(q), q.new_empty(q.shape[:3] if runs_kernel("kv_prune", q) else 0, dtype=torch.float32)


@torch.library.custom_op("ratrain::pruned_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, life: Tensor, kept: Tensor, active: Tensor, y: Tensor, lse: Tensor,
    counts: list[int], block: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if runs_kernel("kv_prune", q):
        from . import kernel

        return kernel.backward(
            grad, q, k, v, life, kept, active, y, lse, counts=tuple(counts), block=block, scale=scale
        )  # type: ignore[return-value]
    d_q, d_k, d_v = reference.backward(grad, q, k, v, life, scale)
    return laid_out(d_q), laid_out(d_k), laid_out(d_v)


@_backward.register_fake
def _(grad, q, *_others):
    return like(q), like(q), like(q)


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.counts, ctx.block, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx, grad: Tensor, _lse: Tensor):
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    found = _backward(grad, *ctx.saved_tensors, ctx.counts, ctx.block, ctx.scale)
    return *found, None, None, None, None, None, None


_attend.register_autograd(_differentiate, setup_context=_save)
