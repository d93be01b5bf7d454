"""RA+MLA: attention over shared latents, a reciprocal band in its scores, gates from statistics of attention (RA-CT),
and an MLP coupled to attention (mechanisms 1 to 3).

Each is on only if its table or number is given:

    latent                keys and values in L channels that all heads share; without it the base's own q, k and v
    alpha, window         score_ij += alpha q_j . k_i within a band: the scores' own transpose
    [cross_token]         y times a gate of each row of attention
    [gate]                mechanism 1: the MLP gates the heads of the next block's attention
    [cross]               mechanism 2: the MLP's hidden channels mixed over tokens as attention mixes values
    [latent_mlp]          mechanism 3: latents to the MLP's hidden channels and back to the next block's latents

Source: the reference's studies of October and November 2025 (steps 0 to 18), as intended. The reference ran something
else, profile `as_run`: always latent attention in 64 channels; the band and the mechanisms multiplied by a coupling
that was never set, 0; the gates of RA-CT without their alpha; MLPs without dropout. With `as_run`, parts without effect
are built and stay without effect, so that counts and checkpoints agree. Answers between blocks went to the same block
of the next forward pass; as run they are omitted, because at a coupling of 0 they have no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

from pydantic import Field, PositiveInt, field_validator, model_validator
from torch import nn

from ratrain.config.schema import ModelSpec
from ratrain.legacy._idle import Idle
from ratrain.legacy._latent import HeadMaps, LatentQKV, TorchLinear
from ratrain.legacy._reciprocal_block import (
    Coupler,
    CrossToken,
    HeadGate,
    ReciprocalAttention,
    ReciprocalBlock,
    ReciprocalMLP,
)
from ratrain.legacy._reciprocal_core import CrossTokenGate, RankOneCore, ReciprocalCore
from ratrain.legacy._sections import CrossSection, CrossTokenSection, GateSection, LatentMLPSection
from ratrain.model.gpt2 import MLP, Attention, Block, Linear
from ratrain.registry import Patch, register

_WINDOW = 64
Part = Annotated[float, Field(gt=0, lt=1)]


@register("ra_mla")
class RAMLA(Patch):
    """Latent and reciprocal attention of the old studies; options not given are off."""

    transfers: ClassVar[str] = "it reproduces runs of the reference, whose draws were of one width"

    target: str = "blocks.*"  # narrowed to the smallest part of a block that the active options need
    profile: Literal["intended", "as_run"] = Field(
        default="intended", description="as_run: as the reference computed it"
    )
    latent: PositiveInt | Part | None = Field(
        default=None, description="channels of keys and values: a number, or part of n_embd; none: the base's q, k, v"
    )
    per_head_q: bool = Field(default=True, description="latent: whether each head has queries of its own")
    per_head_v: bool = Field(default=True, description="latent: whether each head makes its own values")
    alpha: float = Field(default=0.3, ge=0, description="initial weight of the reciprocal band, learned; 0: no band")
    window: PositiveInt = Field(default=_WINDOW, description="tokens that the band reaches back")
    coupling: Literal[0, 1] = Field(default=0, description="as_run: factor of band and mechanisms; 1 until 2025-11-12")
    cross_token: CrossTokenSection | None = None
    gate: GateSection | None = None
    cross: CrossSection | None = None
    latent_mlp: LatentMLPSection | None = None

    @field_validator("profile", mode="before")
    @classmethod
    def _known(cls, profile: Any) -> Any:
        if profile == "as_run_2025_11_03":
            raise ValueError(
                "the model of 2025-11-03 (fixed weights of mechanisms, coupling 1) cannot be trained here for now; "
                "expected 'intended' or 'as_run'"
            )
        return profile

    @model_validator(mode="after")
    def _fits(self):
        if self.latent is None:
            if self.as_run:
                raise ValueError("profile = 'as_run' is always latent attention: give latent (the reference had 64)")
            if not (self.per_head_q and self.per_head_v):
                raise ValueError("per_head_q and per_head_v need latent attention; give latent, or drop them")
            if self.latent_mlp:
                raise ValueError("latent_mlp (mechanism 3) needs latents to share; give latent")
            if not (self.alpha or self.cross_token or self.gate or self.cross):
                raise ValueError("nothing is on; give latent, alpha, cross_token, gate or cross, or drop the patch")
        if not self.alpha and self.window != _WINDOW:
            raise ValueError("alpha = 0 leaves no band that window could bound; drop window")
        if self.coupling and not self.as_run:
            raise ValueError("coupling needs profile = 'as_run'; drop it: 'intended' couples by the activation")
        if self.cross_token and self.cross_token.apply == "weights" and not self.as_run:
            raise ValueError("cross_token.apply = 'weights' equals 'output' with profile = 'intended'")
        if self.cross_token and self.as_run and self.cross_token.apply == "output" and self.cross_token.alpha != 0.2:
            raise ValueError("cross_token.alpha was not read as run with apply = 'output'; drop it")
        return self

    @property
    def as_run(self) -> bool:
        return self.profile == "as_run"

    @property
    def _mechanisms(self) -> bool:
        return any((self.gate, self.cross, self.latent_mlp))

    def builders(self) -> Mapping[str, Callable[[nn.Module, ModelSpec], nn.Module]]:
        if self._mechanisms:
            return {self.target: self.build}
        if self.latent is not None:
            return {f"{self.target}.attn": self._build_attention}
        return {f"{self.target}.attn.core": lambda old, spec: self._core(spec, Place(0, 1))}

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        block = cast("Block", old)
        place = Place(block.layer, spec.n_layer)
        attn = self._attention(block.attn, spec, place)
        return ReciprocalBlock(block, attn=attn, mlp=self._mlp(block.mlp, spec, place))

    def closed(self) -> Patch | None:
        """Returns the patch with latent attention alone; None without latents."""
        if self.latent is None:
            return None
        off = dict.fromkeys(("cross_token", "gate", "cross", "latent_mlp"))
        return self.model_copy(update={"alpha": 0.0, **off})

    # -- parts ------------------------------------------------------------------------------------------------------

    def _build_attention(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        return self._attention(cast("Attention", old), spec, Place(0, 1))

    def _attention(self, old: Attention, spec: ModelSpec, place: Place) -> ReciprocalAttention:
        core = self._core(spec, place)
        if self.latent is None:
            return ReciprocalAttention(old, spec, qkv=old.qkv, core=core, proj=old.proj)
        if spec.pos == "rope" or spec.qk_norm != "none":
            raise ValueError(
                "latent keys belong to no head; expected model.pos other than 'rope', and model.qk_norm = 'none'"
            )
        qkv = LatentQKV(spec, self._latent(spec), per_head_q=self.per_head_q, as_run=self.as_run)
        drawn = TorchLinear if self.as_run else Linear
        proj = drawn(spec.n_embd, spec.n_embd, bias=False, std=old.proj.std)
        return ReciprocalAttention(old, spec, qkv=qkv, core=core, proj=proj)

    def _core(self, spec: ModelSpec, place: Place) -> ReciprocalCore:
        maps, ct = None, None
        if self.latent is not None:
            per_head = {"per_head_q": self.per_head_q, "per_head_v": self.per_head_v}
            maps = HeadMaps(spec, self._latent(spec), **per_head, as_run=self.as_run)
        if self.cross_token:
            ct = CrossTokenGate(spec, self.cross_token, as_run=self.as_run)
        answers = {
            "gate": self.gate.alpha if self.gate else 0.0,
            "back": self.latent_mlp.back if self.latent_mlp else 0.0,
        }
        kind = RankOneCore if self.as_run else ReciprocalCore
        core = kind(
            spec,
            alpha=self.alpha if self.coupling or not self.as_run else 0.0,
            window=self.window,
            maps=maps,
            latent=None if self.latent is None else self._latent(spec),
            cross_token=ct,
            answers={} if self.as_run or place.is_first else answers,
            hidden=self._mixed_channels(spec),
        )
        if self.as_run:
            starts = {"alpha": 0.0 if self.coupling else self.alpha, **{f"{n}_alpha": a for n, a in answers.items()}}
            core.idle = Idle(**{name: (1,) for name, start in starts.items() if start})
        return core

    def _latent(self, spec: ModelSpec) -> int:
        """Returns L, in channels. Raises ValueError above n_embd."""
        asked = self.latent or 0
        found = asked if isinstance(asked, int) else max(1, round(asked * spec.n_embd))
        if found > spec.n_embd:
            raise ValueError(f"latent must be at most n_embd = {spec.n_embd}, got {found}")
        return found

    def _mixed_channels(self, spec: ModelSpec) -> int:
        """Number of hidden channels per token that mechanism 2 caches."""
        if self.cross is None or (self.as_run and not self.coupling):
            return 0
        return self.cross.width or spec.n_hidden

    def _mlp(self, old: MLP, spec: ModelSpec, place: Place) -> ReciprocalMLP:
        if self.as_run:
            return self._mlp_as_run(old, spec)
        return ReciprocalMLP(
            old,
            gate=HeadGate(spec, self.gate.width) if self.gate and not place.is_last else None,
            cross=CrossToken(spec, self.cross, as_run=False) if self.cross else None,
            coupler=self._coupler(spec, answers=not place.is_last),
            dropout=spec.dropout,
        )

    def _mlp_as_run(self, old: MLP, spec: ModelSpec) -> ReciprocalMLP:
        gate = HeadGate(spec, self.gate.width) if self.gate else None
        cross = CrossToken(spec, self.cross, as_run=True) if self.cross else None
        acts = bool(self.coupling)
        mlp = ReciprocalMLP(
            old,
            gate=None,
            cross=cross if acts else None,
            coupler=self._coupler(spec, answers=False) if acts else None,
            dropout=0.0,
        )
        idle: dict[str, Any] = {"gate": gate, "cross": None if acts else cross}
        whole = self._coupler(spec, answers=True)
        if whole:
            names = ("to_latent", "latent_scale") if acts else dict(whole.named_parameters())
            idle |= {f"coupler_{n}": getattr(whole, n).shape for n in names if getattr(whole, n) is not None}
            idle["latents"] = (128, spec.n_hidden)  # unused with every setting
        mlp.idle = Idle(**{name: part for name, part in idle.items() if part is not None})
        return mlp

    def _coupler(self, spec: ModelSpec, *, answers: bool) -> Coupler | None:
        o = self.latent_mlp
        if o is None or self.latent is None:
            return None
        latent = self._latent(spec)
        if o.tying == "per_head_scalar" and (spec.n_hidden % spec.n_head or latent % spec.n_head):
            raise ValueError(
                f"latent_mlp.tying = 'per_head_scalar' parts {latent} latent and {spec.n_hidden} hidden channels "
                f"evenly among n_head = {spec.n_head}; it must divide both"
            )
        return Coupler(spec, latent, alpha=o.alpha, tying=o.tying, answers=answers)


class Place(NamedTuple):
    """Position of a block in the model."""

    layer: int
    n_layer: int

    @property
    def is_first(self) -> bool:
        """Whether there is no block below to send an answer."""
        return self.layer == 0

    @property
    def is_last(self) -> bool:
        """Whether there is no block above to receive an answer."""
        return self.layer == self.n_layer - 1
