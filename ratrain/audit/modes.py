"""Claims about modes: training, evaluating and compiled code compute the same, and passes have no side effects."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ratrain.audit.finding import Finding, some
from ratrain.audit.model import ForeignModel
from ratrain.contracts.perturbation import differs, random_tokens, shake

ALIKE = "training and evaluating compute the same"
NOTHING_LEFT = "a pass leaves nothing behind"
COMPILED = "compiled it computes the same"
_CLOSE = 1e-5  # of the largest logit: modes may sum in different orders


def alike(model: ForeignModel) -> Iterator[Finding]:
    """Compares both modes on the same tokens, without dropout."""
    tokens = random_tokens(model.vocab_size, 2, model.length)
    shake(model.module)
    with model.without_dropout():
        model.module.train()
        if model.noisy(tokens):
            yield Finding("unchecked", ALIKE, "it is noisy in training, by other means than dropout")
            return
        training = model.logits(tokens)
        evaluating = model.logits(tokens) if model.module.eval() else training
    worst = float((training - evaluating).abs().max())
    if worst > _CLOSE * float(evaluating.abs().max()):
        yield Finding("BROKEN", ALIKE, f"without dropout the logits are up to {worst:.2g} apart")
    else:
        yield Finding("holds", ALIKE)


def nothing_left(model: ForeignModel) -> Iterator[Finding]:
    """Compares outputs in both modes before and after passes over other tokens in both, with unchanged weights."""
    tokens, others = (random_tokens(model.vocab_size, rows, model.length) for rows in (2, 3))
    for training in (True, False):
        with model.buffers_kept():
            before = model.raw_logits(tokens, training=training)
            for mode in (True, False, True):
                model.raw_logits(others, training=mode)
            after = model.raw_logits(tokens, training=training)
        if differs(before, after, _CLOSE * float(before.abs().max())).any():
            mode = "training" if training else "evaluating"
            what = f"{mode}: after passes over other tokens the same tokens give other logits"
            yield Finding("BROKEN", NOTHING_LEFT, what)
            return
    if off := [f"{name} was {what}" for name, what in model.moved.items() if "drop" in name.rpartition(".")[2]]:
        yield Finding("BROKEN", NOTHING_LEFT, f"calls have changed its dropout for good: {some(off)}")
        return
    yield Finding("holds", NOTHING_LEFT)


def compiled(model: ForeignModel) -> Iterator[Finding]:
    """Compares the output with that of torch.compile with the eager backend, which traces without generating code."""
    tokens = random_tokens(model.vocab_size, 2, model.length)
    model.module.eval()
    torch._dynamo.reset()
    plain = model.logits(tokens)
    try:
        found = model.logits(tokens, call=torch.compile(model.module, backend="eager", dynamic=False))
    except Exception as error:  # Dynamo raises many kinds; a failure to compile is no fault of the model
        yield Finding("unchecked", COMPILED, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")
        return
    worst = float((found - plain).abs().max())
    if worst > _CLOSE * float(plain.abs().max()):
        yield Finding("BROKEN", COMPILED, f"logits are up to {worst:.2g} off")
    else:
        yield Finding("holds", COMPILED)
