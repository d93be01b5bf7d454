"""Self-restart: every head mixes a part a of the token's own value into its attention output.

    y_i <- (1 - a) y_i + a v_i

that is, attention probabilities (1 - a) P + a I: a self-loop after the softmax, which no GPT-2 head has. As in the
reference (`UnifiedRAttention`, steps V2, V8 and V10) a is per head, between 0 and 0.5, starts at 0.05, and dropout on
the probabilities does not affect the loop. The reference clipped the parameter a, which stayed stuck once it left
the range; here a = sigmoid(w) / 2 cannot leave it.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.mechanism import Mechanism
from ratrain.registry import Patch, register

_MOST = 0.5  # largest share of a position's own value in the output


@register("self_restart")
class SelfRestart(Patch):
    """A learned share, per head, of each position's own value in its head's output; `init` is its first value."""

    target: str = "blocks.*.attn.blend"
    init: float = Field(default=0.05, gt=0, lt=_MOST)

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        return Restart(spec.n_head, init=self.init)


class Restart(Mechanism):
    """Maps y and v [B, H, T, D] -> (1 - s a) y + s a v, with a = sigmoid(w) / 2 per head."""

    def __init__(self, n_head: int, *, init: float):
        super().__init__()
        self.init = init
        self.w = nn.Parameter(torch.empty(n_head))  # 1-D: never decayed

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.constant_(self.w, math.log(self.init / (_MOST - self.init)))
        super().reset_parameters(generator)

    def forward(self, y: Tensor, v: Tensor, x: Tensor) -> Tensor:
        share = self.s * self.alpha()
        return y + share[:, None, None] * (v - y)  # s = 0 is the base, exactly

    def alpha(self) -> Tensor:  # [H]
        return _MOST * self.w.sigmoid()

    def probes(self) -> dict[str, Tensor]:
        return {"alpha": self.alpha(), "effective alpha": self.s * self.alpha()}
