"""Claims about the loss: it is the cross-entropy of the logits, and it starts at the loss of an untrained model."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ratrain.audit.finding import Finding
from ratrain.audit.model import ForeignModel
from ratrain.contracts.perturbation import random_tokens

OWN = "its loss is the cross-entropy of its logits"
BEGINNING = "it begins as an untrained model does"
_CLOSE = 1e-4  # nats: some models form the loss in fp32
_IGNORED = (-100, -1)  # torch's default and nanoGPT's
_STEEP = 100.0  # gradient norm; that of a usual initialisation is of the order of 1


def own_loss(model: ForeignModel) -> Iterator[Finding]:
    """Compares the model's own loss with the cross-entropy of its logits and with common mistakes, also with ignored
    targets."""
    tokens = random_tokens(model.vocab_size, 4, model.length)
    model.module.eval()
    logits, loss = model.with_loss(tokens, targets := model.targets_for(tokens))
    if loss is None or logits is None:
        yield Finding("unchecked", OWN, "it returns no loss beside logits for each position")
        return
    if fault := _mistaken(float(loss), logits, targets, shifts=model.shifts_inside):
        yield Finding("BROKEN" if fault.startswith("it is") else "warning", OWN, fault)
        return
    ignored = next((word for word in _IGNORED if _takes(model, tokens, targets, word)), None)
    if ignored is None:
        yield Finding("holds", OWN, "targets that do not count were not checked: it takes neither -100 nor -1")
        return
    masked = _masked(targets, ignored)
    logits, loss = model.with_loss(tokens, masked)
    assert logits is not None and loss is not None
    fault = _mistaken(float(loss), logits, masked, shifts=model.shifts_inside, ignored=ignored)
    if fault:
        yield Finding("BROKEN" if fault.startswith("it is") else "warning", OWN, f"with targets of {ignored}: {fault}")
    else:
        yield Finding("holds", OWN, f"also where targets are {ignored}")


def _masked(targets: Tensor, ignored: int) -> Tensor:
    """Sets the ends of the rows to `ignored`, each from another position on."""
    masked = targets.clone()
    for row in range(len(masked)):
        masked[row, masked.shape[1] // 2 + 3 * row :] = ignored
    return masked


def _takes(model: ForeignModel, tokens: Tensor, targets: Tensor, ignored: int) -> bool:
    """Whether the model accepts targets of `ignored` with a finite loss; other values are an index out of range, or
    count as a token."""
    try:
        _, loss = model.with_loss(tokens, _masked(targets, ignored))
    except (IndexError, RuntimeError):
        return False
    return loss is not None and bool(loss.isfinite())


def _mistaken(loss: float, logits: Tensor, targets: Tensor, *, shifts: bool, ignored: int = -100) -> str:
    """Returns "" if `loss` is the mean over the counted targets; else the mistake that it matches, or the right
    value."""
    logits = logits.double()
    right = _each(logits, targets, by=1 if shifts else 0, ignored=ignored)
    counted = right[right.isfinite()]
    if abs(loss - float(counted.mean())) < _CLOSE:
        return ""
    rows = torch.stack([row[row.isfinite()].mean() for row in right])
    others = {
        "the mean over all targets, also those that do not count": float(counted.sum()) / right.numel(),
        "a mean over rows of their means, so that a token of a short row counts more": float(rows.mean()),
        "a sum, which grows with the batch": float(counted.sum()),
    }
    for by in (0, 1, 2):
        shifted = _each(logits, targets, by=by, ignored=ignored)
        others[f"taken with targets {by - (1 if shifts else 0):+d} tokens away from the next one"] = float(
            shifted[shifted.isfinite()].mean()
        )
    for what, value in others.items():
        if abs(loss - value) < _CLOSE:
            return f"it is {what}: {loss:.4f} for {float(counted.mean()):.4f}"
    return f"{loss:.4f}, where the logits' cross-entropy is {float(counted.mean()):.4f}"


def _each(logits: Tensor, targets: Tensor, *, by: int, ignored: int) -> Tensor:
    """Returns the nats of each target [B, T - by], with targets shifted by `by` tokens; NaN for ignored targets."""
    length = targets.shape[1] - by
    seen, wanted = logits[:, :length], targets[:, by:]
    nats = F.cross_entropy(seen.transpose(1, 2), wanted.clamp(min=0), reduction="none")
    return nats.masked_fill(wanted == ignored, float("nan"))


def beginning(model: ForeignModel) -> Iterator[Finding]:
    """Compares the initial loss with ln V, and checks the norm of the first gradient."""
    tokens = random_tokens(model.vocab_size, 8, model.length)
    model.module.eval()
    loss = F.cross_entropy(model.logits(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    even = math.log(model.vocab_size)
    verdict = "note" if abs(float(loss) - even) < 0.5 else "warning"
    yield Finding(verdict, f"it begins with a loss of {loss:.3f}", f"guessing evenly costs ln V = {even:.3f}")
    model.module.zero_grad(set_to_none=True)
    model.backward(tokens)
    norm = float(sum(p.grad.double().square().sum() for p in model.module.parameters() if p.grad is not None) ** 0.5)
    if norm > _STEEP:
        what = f"an untrained model's is of the order of 1; over {_STEEP:g} the first steps are clipped or diverge"
        yield Finding("warning", f"it begins with a gradient of norm {norm:.3g}", what)
