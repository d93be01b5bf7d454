"""Stick-breaking attention: assigns probability mass from the newest key to the oldest, each taking from the rest.

    p_ij = sigmoid(score_ij) prod_{j < l < i} (1 - sigmoid(score_il)),  j < i

in place of the softmax: a query attends to earlier tokens, newest first, and need not spend all of its mass (the first
token attends to nothing). No parameters. Scores [B, H, T, T] are the base's and are materialised.
Source: Tan et al. 2024, "Stick-breaking Attention", arXiv:2410.17980, which uses no other position encoding; here the
base's positions stay.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.scores import ScoreCore
from ratrain.registry import Patch, register


@register("stick_breaking")
class StickBreaking(Patch):
    """Probabilities by breaking a stick instead of by a softmax; nothing to set, no parameters."""

    target: str = "blocks.*.attn.core"

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        return StickCore(spec)


class StickCore(ScoreCore):
    """softmax + s (stick - softmax)."""

    s: Tensor  # activation, moved by the schedule

    def __init__(self, spec: ModelSpec):
        super().__init__(spec.dropout, scale=spec.score_scale)
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator: torch.Generator) -> None:
        self.s.fill_(1.0)

    def probabilities(self, scores: Tensor, seen: Tensor) -> Tensor:
        probs = super().probabilities(scores, seen)
        earlier = seen.tril(seen.shape[1] - seen.shape[0] - 1)  # [S, T], itself left out
        left = F.logsigmoid(-scores).masked_fill(~earlier, 0)  # log of the share that each key leaves to earlier keys
        before = left.flip(-1).cumsum(-1).flip(-1) - left  # log of the share that keys j + 1 to i - 1 leave together
        stick = (F.logsigmoid(scores) + before).exp().masked_fill(~earlier, 0)
        return probs + self.s * (stick - probs)  # s = 0 is the base, exactly
