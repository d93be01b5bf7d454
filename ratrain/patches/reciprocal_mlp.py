"""Reciprocal MLP: the last `width` hidden channels have their own output gate, and may be mixed and gated by token.

    y = W_d [w_std h_std ; w_rec g_t M h_rec],  h = GELU(W_u x),  g_t = sigmoid(u . x_t + c)

M (`mixer`) and g (`gate`) are options. Without them, and with M alone, W_d can absorb the mechanism: GPT-2's function
class. A gate per token is outside it. No attention is involved, so only the name is reciprocal.
Source: the reference's `ReciprocalMLP` (steps V3 to V6), which drew its own weights, dropped the biases, documented g
per token but had one scalar per layer. Here the weights are the base's; gates scale columns of W_d once per weight.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.gpt2 import Linear
from ratrain.model.mechanism import Mechanism, output_share
from ratrain.registry import Patch, register

_GATE = 0.1  # initial value of the gate g, in the reference and here


@register("reciprocal_mlp")
class ReciprocalMLP(Patch):
    """Gates w_std and w_rec on the hidden channels of the MLP; the last `width` (or that fraction) are w_rec's.

    `mixer`: a matrix on those channels after the activation, square (true) or through so many channels. `gate`: one
    more gate on them, a scalar per layer or a sigmoid per token. Initial w_std and w_rec: `series` 0.9 and 0.1;
    `neutral` 1 and 1, the base model; `geometric` the two groups' shares of the channels.
    """

    target: str = "blocks.*.mlp"  # claims its seams `gate` and, if needed, `mix`
    width: PositiveInt | Annotated[float, Field(gt=0, lt=1)] = 64
    mixer: bool | PositiveInt = False
    gate: Literal["none", "layer", "token"] = "none"
    init: Literal["series", "neutral", "geometric"] = "series"

    def builders(self) -> Mapping[str, Callable[[nn.Module, ModelSpec], nn.Module]]:
        builders = {f"{self.target}.gate": self.build}
        if self.mixer or self.gate == "token":
            builders[f"{self.target}.mix"] = self._build_mix
        return builders

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        share = self._n_rec(spec) / spec.n_hidden
        init = {"series": (0.9, 0.1), "neutral": (1.0, 1.0), "geometric": (1 - share, share)}[self.init]
        return ChannelGate(spec.n_hidden, self._n_rec(spec), init=init, second=self.gate == "layer")

    def _build_mix(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        n_rec = self._n_rec(spec)
        inner = n_rec if self.mixer is True else int(self.mixer)
        return Mix(spec, n_rec, inner=inner, by_token=self.gate == "token")

    def _n_rec(self, spec: ModelSpec) -> int:
        n_rec = self.width if isinstance(self.width, int) else round(self.width * spec.n_hidden)
        if not 0 < n_rec < spec.n_hidden:
            raise ValueError(
                f"width must leave both groups of the {spec.n_hidden} hidden channels some, got {self.width}"
            )
        return n_rec


class ChannelGate(Mechanism):
    """A gate [F] per hidden channel: w_std, and w_rec on the last n_rec channels (times g, if `second`)."""

    def __init__(self, n_hidden: int, n_rec: int, *, init: tuple[float, float], second: bool):
        super().__init__()
        self.n_std, self.n_rec, self.init = n_hidden - n_rec, n_rec, init
        self.w_std = nn.Parameter(torch.empty(1))  # 1-D: never decayed
        self.w_rec = nn.Parameter(torch.empty(1))
        self.g = nn.Parameter(torch.empty(1)) if second else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.constant_(self.w_std, self.init[0])
        nn.init.constant_(self.w_rec, self.init[1])
        if self.g is not None:
            nn.init.constant_(self.g, _GATE)
        super().reset_parameters(generator)

    def forward(self) -> Tensor:  # [F], scales columns of the down projection, not tokens
        gate = torch.cat([self.w_std.expand(self.n_std), self._rec().expand(self.n_rec)])
        return 1 + self.s * (gate - 1)  # s = 0 is the base, exactly

    def _rec(self) -> Tensor:
        return self.w_rec if self.g is None else self.w_rec * self.g

    def probes(self) -> dict[str, Tensor]:
        raw = {"w_std": self.w_std, "w_rec": self.w_rec} | ({} if self.g is None else {"g": self.g})
        return raw | {
            "effective w_std": 1 + self.s * (self.w_std - 1),
            "effective w_rec": 1 + self.s * (self._rec() - 1),
        }

    def observe_mlp(self, down: nn.Module, hidden: Tensor, gate: Tensor) -> dict[str, Tensor]:
        """Returns the variance share of the reciprocal channels, the last n_rec, in the MLP output."""
        part = torch.cat([torch.zeros_like(hidden[..., : self.n_std]), hidden[..., self.n_std :]], dim=-1)
        whole = down.forward(hidden, gate)
        return {"share of MLP output variance": output_share(down.forward(part, gate), whole)}


class Mix(Mechanism):
    """Mixes the last n_rec channels of h [B, T, F] and gates them by their token."""

    def __init__(self, spec: ModelSpec, n_rec: int, *, inner: int, by_token: bool):
        super().__init__()
        self.n_rec = n_rec
        self.mixer = nn.Sequential(*_mixer(n_rec, inner)) if inner else None
        self.token = TokenGate(spec.n_embd) if by_token else None

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        std, rec = h.split([h.shape[-1] - self.n_rec, self.n_rec], dim=-1)
        new = rec if self.mixer is None else self.mixer(rec)
        new = new if self.token is None else new * self.token(x)
        return torch.cat([std, (rec + self.s * (new - rec)).to(h.dtype)], dim=-1)  # s = 0 is the base, exactly


def _mixer(n_rec: int, inner: int) -> list[Linear]:
    """Builds one matrix, or two through `inner` channels, with Xavier's standard deviation, as in the reference."""
    sizes = [n_rec, n_rec] if inner == n_rec else [n_rec, inner, n_rec]
    return [Linear(a, b, bias=False, std=(2 / (a + b)) ** 0.5) for a, b in itertools.pairwise(sizes)]


class TokenGate(nn.Module):
    """Maps x [B, T, C] -> sigmoid(u . x + c) [B, T, 1]; the initial value is the same for every token."""

    fan_in: Mapping[str, int | None] = MappingProxyType({"u": 0})

    def __init__(self, n_embd: int):
        super().__init__()
        self.u = nn.Parameter(torch.empty(n_embd))  # 1-D: never decayed
        self.c = nn.Parameter(torch.empty(1))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.zeros_(self.u)
        nn.init.constant_(self.c, math.log(_GATE / (1 - _GATE)))

    def forward(self, x: Tensor) -> Tensor:
        return ((x * self.u).sum(-1, keepdim=True) + self.c).sigmoid()
