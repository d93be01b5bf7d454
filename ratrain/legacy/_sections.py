"""The tables of `[patch.ra_mla]`: each switches one mechanism on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ratrain.config.schema import Section

_K, _TAU = 8, 0.5


class CrossTokenSection(Section):
    """RA-CT: a gate per head and token from one statistic of each row of attention."""

    stat: Literal["topk", "max", "entropy", "rms"] = "topk"
    apply: Literal["output", "weights"] = Field(default="output", description="weights: as_run only")
    alpha: PositiveFloat = Field(default=0.2, le=1, description="share of the output that is gated")
    k: PositiveInt = Field(default=_K, description="topk: number of keys whose mass is summed")
    head_average: bool = Field(default=False, description="the statistic of the mean over heads")
    detach: bool = Field(default=False, description="no gradient through the statistic")

    @model_validator(mode="after")
    def _reads(self):
        if self.stat != "topk" and self.k != _K:
            raise ValueError(f"stat = {self.stat!r} does not read k")
        return self


class GateSection(Section):
    """Mechanism 1."""

    alpha: PositiveFloat = 0.1
    width: PositiveInt = Field(default=64, description="channels between the MLP and the heads' gates")


class CrossSection(Section):
    """Mechanism 2."""

    alpha: PositiveFloat = 0.3
    sparse: Literal["none", "topk", "rms"] = Field(
        default="topk", description="rule that selects the attention weights of a row"
    )
    k: PositiveInt = Field(default=_K, description="topk: weights per row")
    tau: PositiveFloat = Field(default=_TAU, description="rms: threshold, in root mean squares of the row")
    normalize: bool = Field(default=True, description="rows made to sum to 1 again")
    width: PositiveInt | None = Field(
        default=None, description="channels that are mixed; none: all, by one F x F matrix"
    )

    @model_validator(mode="after")
    def _reads(self):
        if self.sparse != "topk" and self.k != _K:
            raise ValueError(f"sparse = {self.sparse!r} does not read k")
        if self.sparse != "rms" and self.tau != _TAU:
            raise ValueError(f"sparse = {self.sparse!r} does not read tau")
        return self


class LatentMLPSection(Section):
    """Mechanism 3."""

    alpha: PositiveFloat = Field(default=0.2, description="weight of the latents in the MLP")
    back: PositiveFloat = Field(default=0.2, description="weight of the MLP's answer in the next block's latents")
    tying: Literal["tied_transpose", "untied", "per_head_scalar"] = "tied_transpose"
