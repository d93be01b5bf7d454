"""Peri-LN: also normalises the outputs of attention and MLP before the residual addition.

    h <- h + Norm(Attn(Norm(h))),  h <- h + Norm(MLP(Norm(h)))

with the base's kind of norm over the C channels, initialised like its others. The norm follows each block's two output
projections (before dropout), [B, T, C], so that the stream's variance grows by about one per sub-layer.
Source: Kim et al. 2025, "Peri-LN", arXiv:2502.02732; Gemma 2 and OLMo 2 use it, and CogView named it sandwich norm
(arXiv:2105.13290).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.mechanism import Mechanism
from ratrain.model.norm import norm_of
from ratrain.registry import Patch, register


@register("peri_ln")
class PeriLN(Patch):
    """A norm after the output projections of attention and MLP; nothing to set."""

    target: str = "blocks.*"  # claims its `attn.proj` and `mlp.down`

    def builders(self) -> Mapping[str, Callable[[nn.Module, ModelSpec], nn.Module]]:
        return {f"{self.target}.attn.proj": self.build, f"{self.target}.mlp.down": self.build}

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        return NormedOutput(old, spec)


class NormedOutput(Mechanism):
    """y + s (Norm(y) - y), with y from the base's projection."""

    def __init__(self, inner: nn.Module, spec: ModelSpec):
        super().__init__()
        self.inner, self.norm = inner, norm_of(spec)

    def forward(self, *inputs: Tensor | None) -> Tensor:
        y = self.inner(*inputs)
        return y + self.s * (self.norm(y) - y)  # s = 0 is the base, exactly
