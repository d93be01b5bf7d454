"""Cost counts of a model: parameters, FLOPs per token, KV-cache bytes per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ratrain.config.schema import ModelSpec
from ratrain.model.gpt2 import GPT2, Linear
from ratrain.model.mechanism import own_modules


@dataclass(frozen=True)
class Cost:
    """Exact counts. FLOPs are multiplications and additions of the matrix products over a full context."""

    parameters: int
    position_parameters: int  # GPT-2 trainers often exclude these
    forward_flops_per_token: int
    key_elements_per_token: int
    value_elements_per_token: int

    @property
    def train_flops_per_token(self) -> int:
        """Three times the forward FLOPs: the backward pass has two products for each forward product."""
        return 3 * self.forward_flops_per_token

    def kv_bytes_per_token(self, itemsize: int) -> int:
        return itemsize * (self.key_elements_per_token + self.value_elements_per_token)


def count(model: GPT2) -> Cost:
    """Counts the costs of a built model, also on the meta device.

    A patch's module with matrix products defines `flops_per_token(spec)`; a replacement of the attention core defines
    the cached elements in `kv_per_token(spec)`; a value seam that caches values in fewer channels defines
    `kept_channels`.
    """
    spec = model.spec
    kv = [kept(block, spec) for block in model.blocks]
    tied_head = 2 * model.wte.weight.numel() if model.unembed is None else 0  # else it is a linear layer
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        position_parameters=sum(p.numel() for p in model.pos.parameters()),
        forward_flops_per_token=sum(_flops(m, model) for _, m in own_modules(model)) + tied_head,
        key_elements_per_token=sum(k for k, _ in kv),
        value_elements_per_token=sum(v for _, v in kv),
    )


def kept(part: Any, spec: ModelSpec) -> tuple[int, int]:
    """Returns the cached elements per token of a block or an attention, as (keys, values).

    A part that keeps its inputs counts them in a `kv_per_token` of its own, with those that it holds inside.
    """
    if hasattr(part, "kv_per_token"):
        return part.kv_per_token(spec)
    if hasattr(part, "attn"):
        keys, values = kept(part.attn, spec)
        stated = getattr(getattr(part, "mlp", None), "kv_per_token", None)
        return keys, values + (stated(spec)[1] if stated else 0)
    keys, values = part.core.kv_per_token(spec)
    channels = getattr(part.value, "kept_channels", None) or spec.head_dim
    return keys, round(values * channels / spec.head_dim)


def _flops(module: nn.Module, model: GPT2) -> int:
    if isinstance(module, Linear):
        return 2 * module.weight.numel()
    stated = getattr(module, "flops_per_token", None)
    return stated(model.spec) if stated else 0
