"""Every op where it runs, in three precisions, against its float64 definition. Needs python3, torch and triton only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_inputs import Setting, cache_of, head_of, learned_plan_of, plan_of
from torch import Tensor

from ratrain.kernels import kv_prune, ra_attention
from ratrain.kernels.kv_prune import reference as kv_reference
from ratrain.kernels.linear_cross_entropy import linear_cross_entropy
from ratrain.kernels.ra_attention import op as ra_op
from ratrain.kernels.ra_attention import reference as ra_reference

# largest |found - exact| / |exact|: what rounding of inputs and probabilities leaves, some times over
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
    return checks


def check(task: tuple[Check, Setting]) -> dict[str, Any]:
    """The largest relative error of a check, twice on equal inputs: a kernel that races tells on itself."""
    one, setting = task
    row = {"check": one.name, "dtype": str(one.dtype).removeprefix("torch."), "bound": BOUND[one.dtype]}
    try:
        first, again = list(one.run(setting, one.dtype)), list(one.run(setting, one.dtype))
    except Exception as error:
        return {**row, "error": None, "ok": False, "why": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    worst = max(_error(found, exact) for found, exact in first)
    same = all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    why = "" if same else "equal inputs gave other bits"
    return {**row, "error": worst, "ok": worst <= BOUND[one.dtype] and same, "why": why}


def _error(found: Tensor, exact: Tensor) -> float:
    """inf where anything is not a number."""
    error = (found.double() - exact).norm() / exact.norm().clamp(min=1e-30)
    return float("inf") if error.isnan() else error.item()


def _ra(
    setting: Setting, dtype: torch.dtype, *, head_dim: int, tied: bool, added: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    batch, n_head, n_token = setting.checked
    q, k, v = setting.packed((batch, n_head, n_token, head_dim), dtype)
    generator = torch.Generator(setting.device).manual_seed(1)

    def drawn(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device=setting.device)

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
    grad = torch.randn(y.shape, generator=torch.Generator(setting.device).manual_seed(1), device=setting.device)
    got = torch.autograd.grad(y, (q, k, v), grad.to(dtype))
    exact = q.detach().double(), k.detach().double(), v.detach().double()
    yield y, kv_reference.forward(*exact, kept.life, head_dim**-0.5)
    stated = kv_reference.backward(grad.to(dtype).double(), *exact, kept.life, head_dim**-0.5)
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
    grad = torch.randn(y.shape, generator=torch.Generator(setting.device).manual_seed(1), device=setting.device)
    got = torch.autograd.grad(y, (q, k, v, counts), grad.to(dtype))
    given = grad.to(dtype).double(), q.detach().double(), k.detach().double(), v.detach().double(), kept.life
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


def _loss(setting: Setting, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    x, weight, targets = head_of(setting, 300, 64, 1000, dtype)
    loss = linear_cross_entropy(x, weight, targets, n_class=990, z_loss=1e-3)
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    logits = exact[0] @ exact[1][:990].T
    wanted = F.cross_entropy(logits, targets)
    yield loss, wanted.detach()
    whole = wanted + 1e-3 * logits.logsumexp(-1).square().mean()
    yield from zip(torch.autograd.grad(loss, (x, weight)), torch.autograd.grad(whole, exact), strict=True)
