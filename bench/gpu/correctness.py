"""Checks every op on its device, in three precisions, against its float64 definition. Needs only torch and triton."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.inputs import Setting, cache_of, head_of, learned_plan_of, plan_of
from bench.gpu.ledger import fault
from ratrain.kernels import adamw, bias_gradient, kv_prune, ra_attention
from ratrain.kernels.adamw import reference as adamw_reference
from ratrain.kernels.bias_gradient import reference as bias_reference
from ratrain.kernels.kv_prune import reference as kv_reference
from ratrain.kernels.linear_cross_entropy import linear_cross_entropy
from ratrain.kernels.linear_cross_entropy import op as loss_op
from ratrain.kernels.ra_attention import op as ra_op
from ratrain.kernels.ra_attention import reference as ra_reference

# largest |found - exact| / |exact|: a few times the error from rounding of inputs and probabilities
BOUND = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Check:
    """One comparison with a float64 definition; picklable, so that compiling goes on in several processes."""

    name: str
    dtype: torch.dtype
    run: Callable[[Setting, torch.dtype], Iterator[tuple[Tensor, Tensor]]]


def all_checks(setting: Setting) -> list[Check]:
    """Every op in every precision, and each head dimension once."""
    dtypes = (torch.float32, torch.float16) if setting.device == "cpu" else tuple(BOUND)
    checks = []
    for dtype in dtypes:
        dims = (32, 64, 128) if dtype == dtypes[-1] else (64,)
        for head_dim, tied, added in itertools.product(dims, (False, True), (False, True)):
            if head_dim != 64 and added:
                continue
            name = f"ra_attention D={head_dim}{' tied' if tied else ''}{' bias blend' if added else ''}"
            checks.append(Check(name, dtype, partial(_ra, head_dim=head_dim, tied=tied, added=added)))
        for head_dim, both in itertools.product(dims, (False, True)):
            mode = "kv" if both else "v_only"
            checks.append(Check(f"kv_prune D={head_dim} {mode}", dtype, partial(_pruned, head_dim=head_dim, both=both)))
            checks.append(Check(f"decode D={head_dim} {mode}", dtype, partial(_decoded, head_dim=head_dim, both=both)))
        checks += [
            Check(f"kv_prune D={head_dim} learned", dtype, partial(_learned, head_dim=head_dim)) for head_dim in dims
        ]
        checks.append(Check("linear_cross_entropy", dtype, _loss))
        checks.append(Check("linear_cross_entropy in chunks", dtype, partial(_loss, rows=128)))
        checks += [Check(f"gelu {form}", dtype, partial(_gelu, tanh=form == "tanh")) for form in ("exact", "tanh")]
        checks.append(Check("split_heads", dtype, _split))
        if dtype != torch.float16:  # no gradient of the step is
            checks.append(Check("adamw", dtype, _adamw))
    return checks


def check(task: tuple[Check, Setting]) -> dict[str, Any]:
    """Returns the largest relative error of a check, run twice on equal inputs to expose a data race."""
    one, setting = task
    row = {"check": one.name, "dtype": str(one.dtype).removeprefix("torch."), "bound": BOUND[one.dtype]}
    try:
        first, again = list(one.run(setting, one.dtype)), list(one.run(setting, one.dtype))
    except Exception as error:
        return {**row, "error": None, "ok": False, "why": fault(error)}
    worst = max(_error(found, exact) for found, exact in first)
    same = all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    why = "" if same else "equal inputs gave other bits"
    return {**row, "error": worst, "ok": worst <= BOUND[one.dtype] and same, "why": why}


def _error(found: Tensor, exact: Tensor) -> float:
    """Relative error in the norm; inf if any value is NaN."""
    error = (found.double() - exact).norm() / exact.norm().clamp(min=1e-30)
    return float("inf") if error.isnan() else error.item()


def _ra(
    setting: Setting, dtype: torch.dtype, *, head_dim: int, tied: bool, added: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    batch, n_head, n_token = setting.checked
    q, k, v = setting.packed((batch, n_head, n_token, head_dim), dtype)
    drawn = partial(setting.normal, setting.generator(1))
    small = {"gate": 1 + 0.3 * drawn(n_head, head_dim), "w_r": drawn(n_head) if tied else None}
    small["bias"] = drawn(batch, n_head, n_token) if added else None
    small["alpha"] = drawn(n_head).sigmoid() if added else None
    given: dict[str, Any] = {"q": q, "k": k, "v": v} | {
        n: x if x is None else x.requires_grad_() for n, x in small.items()
    }
    y = ra_attention.ra_attention(**given)
    grad = drawn(*y.shape).to(dtype)
    wanting = {name: x for name, x in given.items() if x is not None}
    got = dict(zip(wanting, torch.autograd.grad(y, list(wanting.values()), grad), strict=True))
    exact: dict[str, Any] = {name: x if x is None else x.detach().double() for name, x in given.items()}
    rest: tuple[Any, ...] = ra_op._filled(exact["q"], exact["w_r"], exact["bias"], exact["alpha"])
    stated: tuple[Any, ...] = exact["q"], exact["k"], exact["v"], exact["gate"], *rest, head_dim**-0.5
    yield y, ra_reference.forward(*stated)
    for name, wanted in zip(given, ra_reference.backward(grad.double(), *stated), strict=True):
        # gradients over which all tokens cancel are known to their terms' rounding: w_r, bias, alpha in half precision
        if name in got and not (dtype != torch.float32 and name in ("w_r", "bias", "alpha")):
            yield got[name], wanted


def _pruned(setting: Setting, dtype: torch.dtype, *, head_dim: int, both: bool) -> Iterator[tuple[Tensor, Tensor]]:
    q, k, v = setting.packed((*setting.checked, head_dim), dtype)
    plan = plan_of(setting.checked[2], setting.checked[2] // 4)
    kept = kv_prune.keep(q, k, **plan, both=both)
    if dtype == torch.float32:  # in half precision keys that are all but equal may change places
        options = {"sinks": 0, "exposure": True, "both": both, "scale": head_dim**-0.5}
        wanted, _ = kv_reference.keep(q.detach().double(), k.detach().double(), None, **plan, **options)
        yield kept.life, wanted.double()
    y = kv_prune.pruned_attention(q, k, v, kept, block=plan["block"])
    grad = setting.drawn(*y.shape, seed=1).to(dtype)
    got = torch.autograd.grad(y, (q, k, v), grad)
    exact = q.detach().double(), k.detach().double(), v.detach().double()
    yield y, kv_reference.forward(*exact, kept.life, head_dim**-0.5)
    stated = kv_reference.backward(grad.double(), *exact, kept.life, head_dim**-0.5)
    yield from zip(got, stated, strict=True)


def _learned(setting: Setting, dtype: torch.dtype, *, head_dim: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Heads that keep unlike shares, against the definition for the same choice."""
    q, k, v = setting.packed((*setting.checked, head_dim), dtype)
    plan = learned_plan_of(q, setting.checked[2] // 4)
    counts, block = plan["counts"], plan["block"]
    kept = kv_prune.keep(q, k, **plan, ranked=True)
    options = {"sinks": 0, "exposure": True, "both": False, "scale": head_dim**-0.5}
    if dtype == torch.float32:
        whole = {**plan, "counts": counts.detach().ceil().int(), **options}
        life, place = kv_reference.keep(q.detach().double(), k.detach().double(), None, **whole)
        yield kept.life, life.double()
        last = F.pad(place, (0, 1), value=life.shape[-1]).gather(-1, kept.listed.long())
        yield kept.place, last.double()
    y = kv_prune.pruned_attention(q, k, v, kept, block=block, counts=counts, softness=0.05)
    grad = setting.drawn(*y.shape, seed=1).to(dtype)
    got = torch.autograd.grad(y, (q, k, v, counts), grad)
    given = grad.double(), q.detach().double(), k.detach().double(), v.detach().double(), kept.life
    yield y, kv_reference.forward(*given[1:], head_dim**-0.5)
    yield from zip(got, kv_reference.backward(*given, head_dim**-0.5), strict=False)
    if dtype == torch.float32:  # in half precision a sum over all tokens is known to its terms' rounding only
        shown = {"block": block, "softness": 0.05, "scale": head_dim**-0.5}
        chosen = kept.listed, kept.place, counts.detach().double()
        yield got[3], kv_reference.d_counts(*given, *chosen, **shown)


def _decoded(setting: Setting, dtype: torch.dtype, *, head_dim: int, both: bool) -> Iterator[tuple[Tensor, Tensor]]:
    given = cache_of(setting, (*setting.checked, head_dim), keep=0.4, both=both, dtype=dtype)
    exact: dict[str, Any] = {
        name: x if x is None or not x.is_floating_point() else x.double() for name, x in given.items()
    }
    grown = exact.pop("mass")
    y, spent = kv_prune.decode_kept(**given, renormalise=True)
    wanted = kv_reference.decode(**exact, renormalise=True, scale=head_dim**-0.5)
    yield from zip((y, spent, given["mass"]), (*wanted[:2], grown + wanted[2]), strict=True)


def _loss(setting: Setting, dtype: torch.dtype, *, rows: int = 300) -> Iterator[tuple[Tensor, Tensor]]:
    x, weight, targets = head_of(setting, 300, 64, 1000, dtype)
    with patch.object(loss_op, "_rows", lambda x, weight: rows):
        loss = linear_cross_entropy(x, weight, targets, n_class=990, z_loss=1e-3)
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    logits = exact[0] @ exact[1][:990].T
    wanted = F.cross_entropy(logits, targets)
    yield loss, wanted.detach()
    whole = wanted + 1e-3 * logits.logsumexp(-1).square().mean()
    yield from zip(torch.autograd.grad(loss, (x, weight)), torch.autograd.grad(whole, exact), strict=True)


def _gelu(setting: Setting, dtype: torch.dtype, *, tanh: bool) -> Iterator[tuple[Tensor, Tensor]]:
    h, grad = (setting.drawn(300, 144, seed=seed).to(dtype) for seed in range(2))
    bias = torch.zeros(144, device=setting.device, requires_grad=True)
    y = bias_gradient.biased_gelu(h.requires_grad_(), bias, tanh=tanh)
    exact = h.detach().double()
    yield y, F.gelu(exact, approximate="tanh" if tanh else "none")
    yield from zip(
        torch.autograd.grad(y, (h, bias), grad), bias_reference.gelu_backward(grad.double(), exact, tanh), strict=True
    )


def _split(setting: Setting, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    batch, n_head, n_token, _ = shape = 3, 2, 100, 64
    packed = setting.drawn(batch, n_token, 3 * n_head * 64).to(dtype).requires_grad_()
    bias = torch.zeros(packed.shape[-1], device=setting.device, requires_grad=True)
    heads = bias_gradient.split_heads(packed, bias, n_head)
    grads = [setting.drawn(*shape, seed=seed).to(dtype) for seed in range(1, 4)]
    wanted, d_bias = bias_reference.pack(*(grad.double() for grad in grads))
    found = torch.autograd.grad(heads, (packed, bias), grads)
    yield from zip(found, (wanted.view(packed.shape), d_bias), strict=True)


def _adamw(setting: Setting, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    drawn = partial(setting.normal, setting.generator())
    options: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
    moved, step, lr = [], torch.tensor(7.0, device=setting.device), torch.tensor(0.01, device=setting.device)
    for shape in ((5,), (37, 64), (129, 128)):
        copy = torch.empty(shape, dtype=dtype, device=setting.device) if dtype == torch.bfloat16 else None
        state = drawn(*shape), drawn(*shape).to(dtype), 0.1 * drawn(*shape), drawn(*shape).square()
        moved.append(adamw.Moved(*state, step.clone(), copy))
    states = [(one.parameter, one.gradient, one.exp_avg, one.exp_avg_sq) for one in moved]
    exact: list[Any] = [[x.double() for x in state] for state in states]
    adamw.AdamW()(0, moved, lr=lr, grad_scale=None, found_inf=None, **options)
    for one, before in zip(moved, exact, strict=True):
        stated: tuple[Any, ...] = *before, step + 1
        wanted = adamw_reference.update(*stated, lr=0.01, **options)
        yield from zip((one.parameter, one.exp_avg, one.exp_avg_sq), wanted, strict=True)
        if one.copy is not None:
            yield one.copy, wanted[0]
