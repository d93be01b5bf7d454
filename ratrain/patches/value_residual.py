"""Value residual: every layer mixes the first layer's values into its own.

    v_n <- a_n v_n + b_n v_1,  n > 1

with a and b learned per layer, both initially 1/2; v [B, H, T, D]. The state between layers carries the first layer's
values, and the cache stores the mixture, so that decoding caches no more than the base.
Source: Zhou et al. 2024, "Value Residual Learning" (ResFormer, the learnable form), arXiv:2410.17897.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.gpt2 import Value
from ratrain.model.mechanism import Mechanism
from ratrain.registry import Patch, register


@register("value_residual")
class ValueResidual(Patch):
    """The first layer's values in every layer above it; nothing to set, two parameters per layer."""

    target: str = "blocks.*.attn.value"

    def builders(self) -> Mapping[str, Callable[[nn.Module, ModelSpec], nn.Module]]:
        return {self.target.replace("*", "0"): self._build_first, self.target: self.build}

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        return MixedValue()

    def _build_first(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        if spec.n_layer == 1:
            raise ValueError("needs a second layer to mix the values of the first into")
        return FirstValue()


class FirstValue(Value):
    """Returns the values unchanged, and as the state for every layer above."""

    def forward(self, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return v, v


class MixedValue(Mechanism):
    """Returns v + s (a v + b v_1 - v), and v_1 for the next layer."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.empty(1))  # 1-D: never decayed
        self.b = nn.Parameter(torch.empty(1))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.constant_(self.a, 0.5)
        nn.init.constant_(self.b, 0.5)
        super().reset_parameters(generator)

    def forward(self, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor | None]:
        return v + self.s * (self.a * v + self.b * state - v), state  # s = 0 is the base, exactly

    def probes(self) -> dict[str, Tensor]:
        return {"a": self.a, "b": self.b}
