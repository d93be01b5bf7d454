"""Pruned attention in two operations: selection of the keys that stay in the cache, and attention over these keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ratrain.kernels.placement import check_qkv, laid_out, like, runs_kernel

from . import reference


class Kept(NamedTuple):
    """The keys that stay in the cache after each of the R = ceil(T / block) blocks of queries; all int32."""

    life: Tensor  # [B, H, T]: the token at which a key is evicted, T if it stays
    listed: Tensor  # [B, H, R, T]: at r, the held[r] positions before block r that it sees, then those just evicted
    held: Tensor  # [B, H, R]
    by_life: Tensor  # [B, H, T]: positions, ascending by life
    place: Tensor  # [B, H, R, T]: at r, the rank of each listed key; T beyond; empty unless `ranked`


def keep(
    q: Tensor,
    k: Tensor,
    *,
    counts: Sequence[int] | Tensor,
    block: int,
    recent: Sequence[int],
    sinks: int = 0,
    order: Tensor | None = None,
    exposure: bool = True,
    both: bool = False,
    ranked: bool = False,
    active: Tensor | None = None,
    scale: float | None = None,
) -> Kept:
    """Selects the keys that stay, block by block; q and k [B, H, T, D].

    At the end of block r, but the last, counts[r] keys stay, or of each head counts[:, r], rounded up: the newest, then
    the first `sinks`, then the recent[r] newest, then by the attention mass received so far, over the number of queries
    that could see the key with `exposure`; or by `order` [H, T] in place of the mass, nonnegative fp32. `both`: keys
    are evicted with their values, so that mass is computed over the remaining keys. `ranked`: also the place of each.
    If `active`, 0-d fp32, is 0, all stay. No result has a gradient. Raises ValueError on counts, recent, order, shapes,
    dtypes or devices that do not fit.
    """
    check_qkv("keep", q, k, k)
    ends = -(-q.shape[2] // block) - 1
    n_count = counts.shape[-1] if isinstance(counts, Tensor) else len(counts)
    if n_count != ends or len(recent) != ends:
        raise ValueError(f"keep: {ends} blocks end before the last, got {n_count} counts and {len(recent)} recent")
    if isinstance(counts, Tensor):
        _check_counts("keep", counts, q, block)
    elif any(not 0 < count <= (r + 1) * block for r, count in enumerate(counts)):
        raise ValueError(f"keep: counts must be from 1 to the tokens so far, got {list(counts)} in blocks of {block}")
    if order is not None and (tuple(order.shape) != (q.shape[1], q.shape[2]) or order.dtype != torch.float32):
        raise ValueError(f"keep: order must be [H, T] in fp32, got {tuple(order.shape)} in {order.dtype}")
    active = q.new_ones((), dtype=torch.float32) if active is None else active
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    fixed, by_head = ([], counts.detach().ceil().int()) if isinstance(counts, Tensor) else (list(counts), None)
    found = _keep(
        q.detach(), k.detach(), order, active, by_head, fixed, list(recent), block, sinks, exposure, both, ranked, scale
    )
    return Kept(*found)


def pruned_attention(
    q: Tensor, k: Tensor, v: Tensor, kept: Kept, *, block: int, counts: Tensor | None = None, softness: float = 0.0,
    active: Tensor | None = None, scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Softmax attention of each query i over the keys j with j <= i < life_j; q, k, v, y [B, H, T, D].

    kept and block are those of `keep`. Gradients reach q, k and v, and also `counts` [H, R - 1] if `keep` received them
    with `ranked`: straight-through, of a soft rank with a width of `softness` times the tokens so far, times `active`.
    Raises ValueError on shapes, dtypes or devices that do not fit.
    """
    check_qkv("pruned_attention", q, k, v)
    if kept.life.shape != q.shape[:3] or kept.life.dtype != torch.int32:
        raise ValueError(f"pruned_attention: life must be int32 {tuple(q.shape[:3])}, got {tuple(kept.life.shape)}")
    if counts is not None:
        _check_counts("pruned_attention", counts, q, block)
        if kept.place.shape != kept.listed.shape or softness <= 0:
            raise ValueError("pruned_attention: counts need a softness above 0 and places: keep(..., ranked=True)")
        counts = counts.to(torch.promote_types(q.dtype, torch.float32))
    active = q.new_ones((), dtype=torch.float32) if active is None else active
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _attend(q, k, v, *kept, active, counts, block, softness, scale)[0]


def _check_counts(op: str, counts: Tensor, q: Tensor, block: int) -> None:
    shape = q.shape[1], -(-q.shape[2] // block) - 1
    if tuple(counts.shape) != shape or not counts.is_floating_point() or counts.device != q.device:
        raise ValueError(f"{op}: counts must be floating point {shape} beside q, got {tuple(counts.shape)}")


def decode_kept(
    q: Tensor, keys: Tensor, values: Tensor, mass: Tensor, *, places: Tensor | None = None,
    weight: Tensor | None = None, renormalise: bool = False, scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Computes attention of the newest tokens over a pruned cache: y [B, H, S, E], and the share of the probability
    [B, H, S] spent on values still in the cache.

    q [B, H, S, D]: the newest S of the tokens in keys [B, H, N, D]. values [B, H, M, E]: of all keys, M = N; or of
    those at `places` [B, H, M] int64, with probabilities over all keys. `weight` [B, H, M]: 0 for a value that only
    other heads hold. `renormalise`: the spent probability is scaled to 1. The probability of each value is added to
    mass [B, H, M] in place. No result has a gradient. Raises ValueError on shapes or dtypes of keys, values, mass or
    weight that do not fit.
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
    """Marks the `keep` highest, 1 or 0 in the dtype of order, and returns the place of each, int64: 0 for the highest.

    order [B, H, n], highest first; ties by position. keep: one number for all heads, or [H]. No result has a gradient.
    """
    # an operation of its own: the compiler would generate new kernels around the sort for every block of queries
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
    # a prompt's many queries, and values of widths without a kernel, use the vendor's products
    if q.shape[2] == 1 and all(runs_kernel("kv_prune", x) for x in (q, values)):
        from . import decoding

        return decoding.decode(q, keys, values, mass, places, weight, renormalise=renormalise, scale=scale)
    y, total, received = reference.decode(q, keys, values, places, weight, renormalise=renormalise, scale=scale)
    mass += received
    return y, total


@_decode.register_fake
def _(q, keys, values, mass, places, weight, renormalise, scale):
    wide = torch.promote_types(q.dtype, torch.float32)
    return values.new_empty(*q.shape[:3], values.shape[3]), q.new_empty(q.shape[:3], dtype=wide)


@torch.library.custom_op("ratrain::kv_keep", mutates_args=())
def _keep(
    q: Tensor, k: Tensor, order: Tensor | None, active: Tensor, by_head: Tensor | None, counts: list[int],
    recent: list[int], block: int, sinks: int, exposure: bool, both: bool, ranked: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rest = {"recent": tuple(recent), "block": block, "sinks": sinks, "exposure": exposure, "both": both, "scale": scale}
    if runs_kernel("kv_prune", q):
        from . import kernel

        numbers = tuple(counts) if by_head is None else by_head
        return kernel.keep(q, k, order, active, numbers, ranked=ranked, **rest)  # type: ignore[return-value]
    numbers = counts if by_head is None else by_head
    numbers = numbers if active > 0 else [(r + 1) * block for r in range(len(recent))]
    life, place = reference.keep(q, k, order, counts=numbers, **rest)
    listed, held = reference.listed(life, block)
    n_token = q.shape[2]
    place = F.pad(place, (0, 1), value=n_token).gather(-1, listed.long()) if ranked else life.new_empty(0)
    return life, listed, held, life.argsort(dim=-1, stable=True).int(), place


@_keep.register_fake
def _(q, k, order, active, by_head, counts, recent, block, sinks, exposure, both, ranked, scale):
    batch, n_head, n_token, _ = q.shape
    rows = -(-n_token // block)
    shapes = (n_token,), (rows, n_token), (rows,), (n_token,)
    life, listed, held, by_life = (q.new_empty(batch, n_head, *shape, dtype=torch.int32) for shape in shapes)
    return life, listed, held, by_life, torch.empty_like(listed) if ranked else life.new_empty(0)


@torch.library.custom_op("ratrain::pruned_attention", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, life: Tensor, listed: Tensor, held: Tensor, by_life: Tensor, place: Tensor,
    active: Tensor, counts: Tensor | None, block: int, softness: float, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns y, and the log of each row's sum [B, H, T] if the kernel ran, else an empty tensor."""
    if runs_kernel("kv_prune", q):
        from . import kernel

        return kernel.attend(q, k, v, listed, held, block=block, scale=scale)
    return laid_out(reference.forward(q, k, v, life, scale)), q.new_empty(0)


@_attend.register_fake
def _(q, *_others):
    return like(q), q.new_empty(q.shape[:3] if runs_kernel("kv_prune", q) else 0, dtype=torch.float32)


@torch.library.custom_op("ratrain::pruned_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, life: Tensor, listed: Tensor, held: Tensor, by_life: Tensor,
    place: Tensor, active: Tensor, counts: Tensor | None, y: Tensor, lse: Tensor, block: int, softness: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v and counts; an empty tensor for counts of None."""
    rest = {"block": block, "softness": softness, "scale": scale}
    if runs_kernel("kv_prune", q):
        from . import kernel

        *found, d_counts = kernel.backward(
            grad, q, k, v, life, listed, held, by_life, place, counts, y, lse, **rest
        )  # fmt: skip
    else:
        found = [laid_out(x) for x in reference.backward(grad, q, k, v, life, scale)]
        d_counts = q.new_empty(0)
        if counts is not None:
            d_counts = reference.d_counts(grad, q, k, v, life, listed, place, counts, **rest)
    return *found, d_counts if counts is None else d_counts * active  # type: ignore[return-value]


@_backward.register_fake
def _(grad, q, *others):
    counts = others[-6]
    wide = torch.promote_types(q.dtype, torch.float32)
    return like(q), like(q), like(q), q.new_empty(0 if counts is None else counts.shape, dtype=wide)


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.block, ctx.softness, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx, grad: Tensor, _lse: Tensor):
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    counts = ctx.saved_tensors[9]
    *found, d_counts = _backward(grad, *ctx.saved_tensors, ctx.block, ctx.softness, ctx.scale)
    return *found, *[None] * 6, None if counts is None else d_counts, None, None, None


_attend.register_autograd(_differentiate, setup_context=_save)
