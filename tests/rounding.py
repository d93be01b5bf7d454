"""How far rounding may move a result, from the number and the size of the terms of every sum.

Such a bound holds on any machine, whatever the order in which it adds; a constant that was measured on one machine, or
a bound relative to the result, holds for that machine's order alone: where terms cancel, their errors do not.

Rounding errors behave like independent random numbers (Higham and Mary 2019, doi:10.1137/18M1226312), of a standard
deviation of u / sqrt(3) of the partial sum, u the unit roundoff; partial sums of n terms of either sign grow to the
root R of the sum of their squares, so the error of the sum is u R sqrt(n / 6). Of a few operations the bound is that of
the worst case, u for each operation on each term.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNIT = {dtype: torch.finfo(dtype).eps / 2 for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
DEVIATIONS = 6.0  # of a normal error: one of 5e8 elements lies beyond


def of_sum(n: int, total: Tensor, squares: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of sums of `n` terms, from the sums and those of the squares of their terms.

    On the way to a sum s, partial sums are (i / n) s on average, and spread about it by R sqrt(i (n - i)) / n: few are
    thrice as far away.
    """
    return DEVIATIONS * UNIT[dtype] * (n / 18 * (2 * total.square() + 9 * squares)).sqrt()


def of_product(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of each element of a @ b, computed in `dtype`."""
    a, b = a.double(), b.double()
    return of_sum(a.shape[-1], a @ b, squares(a, b), dtype)


def squares(a: Tensor, b: Tensor) -> Tensor:
    """Of each element of a @ b the sum of the squares of its terms."""
    return a.square() @ b.square()


def attention_bounds(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *, scale: float, gate: Tensor | None = None,
    w_r: Tensor | None = None, bias: Tensor | None = None, alpha: Tensor | None = None, hidden: Tensor | None = None,
    stored: torch.dtype = torch.float32,
) -> dict[str, float]:  # fmt: skip
    """Of attention's y and of each gradient, largest element; kernels.ra_attention.reference names the arguments.

    All in float64, as the definition takes them. hidden [B, H, T, T] is True for the keys that a query does not see
    beside later ones. Sums are formed in fp32; factors are rounded to `stored` before they are multiplied.
    """
    n_head, n_token, n_channel = q.shape[1:]
    none = q.new_zeros(n_head)
    g = q.new_ones(n_head, 1, n_channel) if gate is None else gate[:, None]
    w, a = (none if x is None else x for x in (w_r, alpha))
    w, a = w[:, None, None], a[:, None, None]
    b = q.new_zeros(q.shape[:3]) if bias is None else bias
    unseen = torch.ones(n_token, n_token, dtype=torch.bool).triu(1)
    unseen = unseen if hidden is None else unseen | hidden
    scores = scale * ((q * g) @ k.mT + w * (k @ q.mT)) + b[:, :, None]
    probs = scores.masked_fill(unseen, float("-inf")).softmax(-1)
    o, d_o = probs @ v, (1 - a) * grad
    score = (scale**2 * (squares(q * g, k.mT) + squares(w * k, q.mT)) + b[:, :, None] ** 2).sqrt()
    d_score = probs * (squares(d_o, v.mT) + (d_o * o).square().sum(-1, keepdim=True)).sqrt()
    terms = {
        "y": (squares((1 - a) * probs, v) + (a * v) ** 2).sqrt(),
        "q": scale * (squares(d_score, k * g) + squares(d_score.mT, w * k)).sqrt(),
        "k": scale * (squares(d_score.mT, q * g) + squares(d_score, w * q)).sqrt(),
        "v": (squares(probs.mT, d_o) + (a * grad) ** 2).sqrt(),
        "gate": scale * (q**2 * squares(d_score, k)).sum((0, 2)).sqrt(),
        "w_r": scale * (k**2 * squares(d_score, q)).sum((0, 2, 3)).sqrt(),
        "bias": (d_score**2).sum(2).sqrt(),
        "alpha": (grad**2 * (v**2 + squares(probs, v))).sum((0, 2, 3)).sqrt(),
    }
    # an absolute error of a score is a relative one of its probability
    sensitive = 1 + score.masked_fill(unseen, 0).max().item()
    relative = sensitive * spread(n_channel + n_token, stored)
    return {name: DEVIATIONS * relative * root.max().item() for name, root in terms.items()}


def spread(n: int, stored: torch.dtype = torch.float32) -> float:
    """Standard deviation of the error of a sum of `n` terms in fp32, relative to R; of factors that are rounded to
    `stored`, each term has two, and so has the sum if it is a factor in its turn."""
    rounded = 3 * UNIT[stored] ** 2 / 3 if stored != torch.float32 else 0.0
    return (UNIT[torch.float32] ** 2 * n / 6 + rounded) ** 0.5


def check(found: Tensor, expected: Tensor, bound: Tensor | float, name: str = "it") -> None:
    """Fails where an element of `found` is further from `expected`, in float64, than `bound`."""
    error = (found.detach().double() - expected.detach()).abs()
    share = (error / bound).nan_to_num(nan=0.0) if error.numel() else error.new_zeros(1)
    at = share.argmax()
    assert not found.isnan().any() and share.max() <= 1, (
        f"{name}: off by {error.flatten()[at]:.2e}, {share.max():.3g} of the bound"
    )
