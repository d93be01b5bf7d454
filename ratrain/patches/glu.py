"""Gated linear unit: multiplies the hidden channels of the MLP by a second projection of the token.

    h = act(U x) * (V x),  x [B, T, C] after the norm, h [B, T, F]

With GELU this is GEGLU, with other activations another GLU variant; V is initialised like every other weight, with the
base's biases. It adds half the MLP's size at the same width: `model.mlp_ratio` of 8/3 instead of 4 compensates.
Source: Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202.
"""

from __future__ import annotations

from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.gpt2 import Linear
from ratrain.model.mechanism import Mechanism
from ratrain.registry import Patch, register


@register("glu")
class GLU(Patch):
    """A second projection that gates the MLP's hidden channels; nothing to set, the width is the model's."""

    target: str = "blocks.*.mlp.mix"

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        return LinearGate(spec)


class LinearGate(Mechanism):
    """h + s (h * V x - h)."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.v = Linear(spec.n_embd, spec.n_hidden, bias=spec.bias, std=spec.init_std)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return h + self.s * (h * self.v(x) - h)  # s = 0 is the base, exactly
