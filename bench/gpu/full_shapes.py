"""Checks every op at the shapes of GPT-2 124M, in the training dtype, against its float64 definition."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.correctness import Check
from bench.gpu.inputs import Setting, cache_of, head_of, plan_of
from ratrain.kernels import bias_gradient, kv_prune, ra_attention
from ratrain.kernels.bias_gradient import reference as bias_reference
from ratrain.kernels.kv_prune import reference as kv_reference
from ratrain.kernels.linear_cross_entropy import linear_cross_entropy
from ratrain.kernels.ra_attention import op as ra_op
from ratrain.kernels.ra_attention import reference as ra_reference


def full_checks(setting: Setting) -> list[Check]:
    """Every op at the shapes of GPT-2 124M, in the training dtype; part of the batch against float64."""
    checks = [
        Check(f"ra_attention{' tied' if tied else ''}", setting.dtype, partial(_full_ra, tied=tied))
        for tied in (False, True)
    ]
    for both in (False, True):
        mode = "kv" if both else "v_only"
        checks.append(Check(f"kv_prune {mode}", setting.dtype, partial(_full_pruned, both=both)))
        checks.append(Check(f"decode {mode}", setting.dtype, partial(_full_decoded, both=both)))
    checks.append(Check("linear_cross_entropy", setting.dtype, _full_loss))
    checks.append(Check("gelu", setting.dtype, _full_gelu))
    return [Check(f"full {one.name}", one.dtype, one.run) for one in checks]


def _last(*tensors: Tensor) -> list[Tensor]:
    """Returns the last sequence of a batch in float64: a wrong pointer offset shows there first."""
    return [x[-1:].detach().double() for x in tensors]


def _full_ra(setting: Setting, dtype: torch.dtype, *, tied: bool) -> Iterator[tuple[Tensor, Tensor]]:
    q, k, v = setting.packed(dtype=dtype)
    gate = torch.full((setting.n_head, setting.head_dim), 1.1, device=setting.device)
    w_r = torch.full((setting.n_head,), 0.3, device=setting.device) if tied else None
    y = ra_attention.ra_attention(q, k, v, gate, w_r=w_r)
    grad = setting.drawn(*y.shape, seed=1).to(dtype)
    got = torch.autograd.grad(y, (q, k, v), grad)
    exact = _last(q, k, v)
    wide = None if w_r is None else w_r.double()
    filled = ra_op._filled(exact[0], wide, None, None)
    stated: tuple[Any, ...] = *exact, gate.double(), *filled, setting.head_dim**-0.5
    yield y[-1:], ra_reference.forward(*stated)
    wanted = ra_reference.backward(_last(grad)[0], *stated)[:3]
    yield from zip((x[-1:] for x in got), wanted, strict=True)


def _full_pruned(setting: Setting, dtype: torch.dtype, *, both: bool) -> Iterator[tuple[Tensor, Tensor]]:
    q, k, v = setting.packed(dtype=dtype)
    plan = plan_of(setting.n_token, setting.block)
    kept = kv_prune.keep(q, k, **plan, both=both)
    y = kv_prune.pruned_attention(q, k, v, kept, block=plan["block"])
    grad = setting.drawn(*y.shape, seed=1).to(dtype)
    got = torch.autograd.grad(y, (q, k, v), grad)
    stated: tuple[Any, ...] = *_last(q, k, v), kept.life[-1:], setting.head_dim**-0.5
    yield y[-1:], kv_reference.forward(*stated)
    wanted = kv_reference.backward(_last(grad)[0], *stated)
    yield from zip((x[-1:] for x in got), wanted, strict=True)


def _full_decoded(setting: Setting, dtype: torch.dtype, *, both: bool) -> Iterator[tuple[Tensor, Tensor]]:
    shape = setting.decode_batch, setting.n_head, setting.decode_context, setting.head_dim
    given = cache_of(setting, shape, keep=0.382, both=both, dtype=dtype)
    last: dict[str, Any] = {
        name: x if x is None else x[-1:].double() if x.is_floating_point() else x[-1:] for name, x in given.items()
    }
    grown = last.pop("mass")
    y, spent = kv_prune.decode_kept(**given, renormalise=True)
    wanted = kv_reference.decode(**last, renormalise=True, scale=setting.head_dim**-0.5)
    found = (y[-1:], spent[-1:], given["mass"][-1:])
    yield from zip(found, (*wanted[:2], grown + wanted[2]), strict=True)


def _full_loss(setting: Setting, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    rows = setting.batch * setting.n_token
    x, weight, targets = head_of(setting, rows, setting.channels, setting.n_class, dtype)
    loss = linear_cross_entropy(x, weight, targets)
    d_x, _ = torch.autograd.grad(loss, (x, weight))
    part = slice(rows - min(rows, 256), rows)
    logits = x[part].detach().double() @ weight.detach().double().T
    slope = logits.softmax(-1)
    slope[torch.arange(len(slope), device=slope.device), targets[part]] -= 1
    yield d_x[part], slope @ weight.detach().double() / rows
    with torch.no_grad():
        losses = linear_cross_entropy(x, weight, targets, reduction="none")
    yield losses[part], F.cross_entropy(logits, targets[part], reduction="none")


def _full_gelu(setting: Setting, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    shape = setting.batch * setting.n_token, 4 * setting.channels
    h, grad = (setting.drawn(*shape, seed=seed).to(dtype) for seed in range(2))
    bias = torch.zeros(shape[1], device=setting.device, requires_grad=True)
    y = bias_gradient.biased_gelu(h.requires_grad_(), bias)
    d_h, d_bias = torch.autograd.grad(y, (h, bias), grad)
    columns = slice(shape[1] - 64, shape[1])
    wanted = bias_reference.gelu_backward(grad[:, columns].double(), h.detach()[:, columns].double(), False)
    yield from zip((d_h[:, columns], d_bias[columns]), wanted, strict=True)
