"""Log-probabilities of continuations under a model: sorted by length, padded on the right, in batches of few shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ratrain.model.gpt2 import GPT2

_ROWS = 256  # targets whose logits exist at once: 100 MB in float64 with GPT-2's vocabulary
_SHAPES = 16  # most lengths that batches are padded to
_LEAST = 8  # tokens between two of these lengths, at least


class Scored(NamedTuple):
    """The sum of the log-probabilities of a continuation in nats, and whether each token is the most likely one."""

    loglikelihood: float
    greedy: bool


Pair = tuple[Sequence[int], Sequence[int]]  # tokens of a context, at least one, and of its continuation


@torch.inference_mode()
def score(
    model: GPT2, pairs: Sequence[Pair], *, batch: int, done: Callable[[int], None] = lambda count: None
) -> list[Scored]:
    """Scores continuations; context and continuation together have at most block_size + 1 tokens.

    The model must be in eval mode. Attention is causal, so that padding on the right changes no score. `done` receives
    the number of pairs after each batch. Raises FloatingPointError if logits are not finite.
    """
    found = [Scored(0.0, True)] * len(pairs)
    # a continuation may have no token, if its text is that of the context's last token
    some = sorted((at for at, (_, told) in enumerate(pairs) if len(told)), key=lambda at: -_inputs(pairs[at]))
    for rows, length in _batches([(at, _inputs(pairs[at])) for at in some], batch, model.spec.block_size):
        for at, scored in zip(rows, _batch(model, [pairs[at] for at in rows], batch, length), strict=True):
            found[at] = scored
        done(len(rows))
    return found


def _inputs(pair: Pair) -> int:
    return len(pair[0]) + len(pair[1]) - 1


def _batches(sized: Sequence[tuple[int, int]], batch: int, block_size: int) -> Iterator[tuple[list[int], int]]:
    """Yields rows that are padded to the same length, at most `batch` of them, and that length; longest first."""
    step = max(_LEAST, -(-block_size // _SHAPES))
    held: list[int] = []
    now = 0
    for at, inputs in sized:
        length = min(block_size, -(-inputs // step) * step)
        if held and (length != now or len(held) == batch):
            yield held, now
            held = []
        held, now = [*held, at], length
    if held:
        yield held, now


def _batch(model: GPT2, pairs: Sequence[Pair], batch: int, length: int) -> Iterator[Scored]:
    """Scores pairs in one pass of the shape [batch, length]; missing rows and tokens are zeros."""
    device = model.wte.weight.device
    tokens = torch.zeros(batch, length, dtype=torch.int64)
    for row, (context, told) in enumerate(pairs):
        tokens[row, : len(context) + len(told) - 1] = torch.tensor([*context, *told][:-1])
    spans = [range(len(context) - 1, len(context) + len(told) - 1) for context, told in pairs]
    rows = torch.tensor([row for row, span in enumerate(spans) for _ in span], device=device)
    places = torch.tensor([place for span in spans for place in span], device=device)
    targets = torch.tensor([token for _, told in pairs for token in told], device=device)
    states = model.states(tokens.to(device))[rows, places]  # [targets, C]
    parts = [_targets(model, *part) for part in zip(states.split(_ROWS), targets.split(_ROWS), strict=True)]
    scores, greedy = (torch.cat(of).cpu() for of in zip(*parts, strict=True))
    sizes = [len(span) for span in spans]
    for each, best in zip(scores.split(sizes), greedy.split(sizes), strict=True):
        yield Scored(float(each.sum()), bool(best.all()))


def _targets(model: GPT2, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the log-probability of each target [N] given states [N, C], and whether it is the most likely token."""
    logits = model.unembedded(states).double()
    if not logits.isfinite().all():
        raise FloatingPointError("the logits are not finite")
    chosen = logits.gather(1, targets[:, None])[:, 0]
    return chosen - logits.logsumexp(1), logits.argmax(1) == targets
