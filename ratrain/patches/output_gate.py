"""Output gate: scales the attention output by a sigmoid of the query token's input.

    y_i <- y_i * sigmoid(W x_i)

with x the input of the attention (after the norm), and W initialised like every other weight, without a bias. W has a
row per channel of y, or per head. Source: Qiu et al. 2025, "Gated Attention for Large Language Models",
arXiv:2505.06708 (position G1). This control arm beat plain attention when no reciprocal arm did. A product of two
functions of the token is outside GPT-2's function class, and it adds parameters.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.gpt2 import Linear
from ratrain.model.mechanism import Mechanism
from ratrain.registry import Patch, register


@register("output_gate")
class OutputGate(Patch):
    """A sigmoid gate, computed from the token, per `channel` or per `head` of the attention output.

    Every gate starts near 1/2, as in the source; s = 0 holds all of them at 1, which is the base model.
    """

    target: str = "blocks.*.attn.blend"
    per: Literal["channel", "head"] = "channel"

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        return SigmoidGate(spec, n_gate=spec.n_embd if self.per == "channel" else spec.n_head)


class SigmoidGate(Mechanism):
    """y [B, H, T, D] scaled by 1 + s (sigmoid(W x) - 1), x [B, T, C]."""

    def __init__(self, spec: ModelSpec, *, n_gate: int):
        super().__init__()
        self.n_head = spec.n_head
        self.gate = Linear(spec.n_embd, n_gate, bias=False, std=spec.init_std)

    def forward(self, y: Tensor, v: Tensor, x: Tensor) -> Tensor:
        gate = self.gate(x).sigmoid().unflatten(-1, (self.n_head, -1)).transpose(1, 2)  # [B, H, T, D or 1]
        return y * (1 + self.s * (gate - 1))  # s = 0 is the base, exactly
