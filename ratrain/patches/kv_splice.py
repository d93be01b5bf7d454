"""KV splice: compresses values per layer and head to principal components of values warped by splines.

    code = (g(v) - mean) down  [K channels],    v' = g^-1(code up + mean)

with g a monotone piecewise-linear map per dimension, exactly invertible, or the identity (plain PCA). Attention uses v'
in training and evaluation; decoding caches the code. The geometry is fitted to values of training text in closed form
or by a separate fit, not by training: checkpoints restore its buffers. Before the fit, and at s = 0, the module is
exactly the base.

Cost: 2 D K products to compress a token and as many to decompress it, per head. In decoding, the spline decompresses
every cached token at every step; plain PCA is affine, so attention mixes codes and decompresses once per query.
By default the plane minimises the loss in the output projection's image of the values, not in the values themselves.
Geometry and fitting follow the reference's KVSplice, which fitted one geometry for all layers to an untrained net and
never used it. A spline that is not better than plain PCA on held-out text is replaced by PCA, head by head.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from ratrain.compression.principal_plane import Plane, fit_slopes, principal_plane, square_root
from ratrain.compression.spline import evaluate, heights_of, invert, quantile_knots
from ratrain.config.schema import ModelSpec, Span
from ratrain.errors import Fault, ManifestError
from ratrain.model.cache import PLAIN, ValueCode
from ratrain.model.gpt2 import Linear
from ratrain.registry import Patch, register

Part = Annotated[float, Field(gt=0, lt=1)]
_KNOTS, _EPOCHS = 7, 8


@register("kv_splice")
class KVSplice(Patch):
    """Values kept in `channels` of the head dimension: a fraction, or a count.

    `vectors` per head are drawn from training text to fit. In training this is done when the patch is switched on (not
    before the first step) and again after each `refit`; with "never", only by `ratrain calibrate`.
    """

    target: str = "blocks.*.attn.value"
    channels: PositiveInt | Part = 0.5
    transform: Literal["spline", "pca"] = "spline"
    objective: Literal["value", "output"] = Field(
        default="output", description="error to minimise: of the values, or of their output projection"
    )
    knots: int = Field(default=_KNOTS, ge=2, le=64, description="knots of a spline, at even quantiles")
    vectors: PositiveInt = 2048
    epochs: PositiveInt = Field(default=_EPOCHS, description="epochs of a spline's fit")
    refit: Span | Literal["never"] = Field(default=Span(fraction=0.2), description="interval between fits in training")

    @model_validator(mode="after")
    def _fits(self):
        if self.transform == "pca" and (self.knots, self.epochs) != (_KNOTS, _EPOCHS):
            raise ValueError("transform = 'pca' has no knots and no epochs: it is solved, not searched")
        if self.refit != "never" and not self.refit.amount:
            raise ValueError("refit must be above 0")
        return self

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        dim = spec.head_dim
        channels = self.channels if isinstance(self.channels, int) else max(1, round(self.channels * dim))
        if channels >= dim:
            raise ValueError(f"channels must be below n_embd / n_head = {dim}, got {channels}")
        if self.vectors < 2 * dim:
            raise ValueError(f"vectors must be at least twice n_embd / n_head = {dim}, got {self.vectors}")
        spliced = SplinedValue if self.transform == "spline" else SplicedValue
        return spliced(spec.n_head, dim, channels, self)


class Error(NamedTuple):
    """Relative reconstruction error of vectors held out from the fit, per head [H]: mean square error over the mean
    square distance from the mean."""

    used: Tensor  # of the objective's quantity
    plain: Tensor  # the same by plain PCA in as many channels
    values: Tensor  # of the values themselves, for any objective


class SplicedValue(nn.Module, ValueCode):
    """Projects values [B, H, T, D] to a plane of K dimensions per head, found by PCA."""

    s: Tensor  # activation, moved by the schedule
    fitted: Tensor  # 1 after the first fit
    mean: Tensor  # [H, 1, D]
    down: Tensor  # [H, D, K]
    up: Tensor  # [H, K, D]
    lost: Tensor  # [H], Error.used of the last fit, and Error.plain
    lost_by_pca: Tensor

    def __init__(self, n_head: int, head_dim: int, channels: int, options: KVSplice):
        super().__init__()
        self.options, self.kept_channels, self.vectors = options, channels, options.vectors
        shapes = {
            "s": (),
            "fitted": (),
            "mean": (n_head, 1, head_dim),
            "lost": (n_head,),
            "lost_by_pca": (n_head,),
            "down": (n_head, head_dim, channels),
            "up": (n_head, channels, head_dim),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.empty(shape))

    def extra_repr(self) -> str:
        o = self.options
        fit = f"{o.objective}, knots={o.knots}, vectors={o.vectors}, epochs={o.epochs}, refit={o.refit}"
        return f"{self.mean.shape[-1]} -> {self.kept_channels} channels, {fit}"

    def reset_parameters(self, generator: torch.Generator) -> None:
        self.s.fill_(1.0)
        for buffer in (self.fitted, self.mean, self.lost, self.lost_by_pca):
            buffer.zero_()
        axes = torch.eye(self.down.shape[1])[:, : self.kept_channels]
        self.down.copy_(axes)
        self.up.copy_(axes.mT)

    def forward(self, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = v.to(self.mean.dtype)  # fp32 beside bf16 values
        seen = self.decompress(self.compress(x))
        return torch.lerp(x, seen, self.s * self.fitted), state  # exact at 0 and at 1

    # -- cache ------------------------------------------------------------------------------------------------------

    def code(self) -> ValueCode:
        """Returns this module as the code if it is fitted and s = 1, else plain values."""
        return self if self.s == 1 and self.fitted == 1 else PLAIN

    def compress(self, v: Tensor) -> Tensor:
        return ((self.warp(v.to(self.mean.dtype)) - self.mean) @ self.down).to(v.dtype)

    def decompress(self, code: Tensor) -> Tensor:
        return self.unwarp(code.to(self.mean.dtype) @ self.up + self.mean).to(code.dtype)

    def fold(self, code: Tensor) -> Tensor:
        """Appends a 1 to the code; attention turns it into the total mass, the factor of the mean."""
        return torch.cat([code, torch.ones_like(code[..., :1])], dim=-1)

    def unfold(self, y: Tensor) -> Tensor:
        y = y.to(self.mean.dtype)
        return y[..., :-1] @ self.up + y[..., -1:] * self.mean

    def warp(self, x: Tensor) -> Tensor:
        return x

    def unwarp(self, y: Tensor) -> Tensor:
        return y

    # -- fitting ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, x: Tensor, held_out: Tensor, attn: Any, generator: torch.Generator) -> Error:
        """Fits the geometry to values x [H, N, D] of the attention `attn`.

        Returns errors on other values, held_out [H, M, D]. Earlier fits have no influence.
        """
        x, root = x.to(self.mean.dtype), self._root(attn)
        self._put(principal_plane(x, self.kept_channels, root))
        self.lost_by_pca.copy_(self._lost(held_out, root))
        self.lost.copy_(self.lost_by_pca)
        self.fitted.fill_(1.0)
        return Error(self.lost, self.lost_by_pca, self._lost(held_out, None))

    def _root(self, attn: Any) -> Tensor | None:
        """Returns the map [H, D, D] that turns a value's norm into its output's; None for the values themselves."""
        if self.options.objective == "value":
            return None
        # a patch may have wrapped the base's projection
        found = (part.weight for part in attn.proj.modules() if isinstance(part, Linear))
        weight = next((w for w in found if w.shape[1] == len(self.mean) * self.mean.shape[2]), None)
        if weight is None:
            message = "attention has no linear output projection here; expected 'value'"
            raise ManifestError([Fault("", "patch.kv_splice.objective", message)])
        rows = weight.float().T  # [H D, C]
        return square_root(rows.reshape(len(self.mean), -1, rows.shape[1]))

    def _put(self, plane: Plane) -> None:
        for name, part in plane._asdict().items():
            getattr(self, name).copy_(part)

    def _lost(self, x: Tensor, root: Tensor | None) -> Tensor:  # [H, M, D] -> [H]
        x = x.to(self.mean.dtype)
        lost, whole = self.decompress(self.compress(x)) - x, x - x.mean(1, keepdim=True)
        if root is not None:
            lost, whole = (t @ root.to(t.dtype) for t in (lost, whole))
        return lost.square().sum((1, 2)) / whole.square().sum((1, 2)).clamp(min=1e-30)

    def probes(self) -> dict[str, Tensor]:
        return {"held-out error": self.lost, "held-out error of PCA": self.lost_by_pca}

    def flops_per_token(self, spec: ModelSpec) -> int:
        return 4 * spec.n_embd * self.kept_channels


class SplinedValue(SplicedValue):
    """SplicedValue after a monotone spline per dimension; the spline cannot be folded into the output."""

    knots: Tensor  # [H, 1, D, S + 1]
    heights: Tensor
    slopes: Tensor  # [H, 1, D, S]

    def __init__(self, n_head: int, head_dim: int, channels: int, options: KVSplice):
        super().__init__(n_head, head_dim, channels, options)
        for name, size in (("knots", options.knots), ("heights", options.knots), ("slopes", options.knots - 1)):
            self.register_buffer(name, torch.empty(n_head, 1, head_dim, size))

    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        self.knots.zero_()
        self.heights.zero_()
        self.slopes.fill_(1.0)

    def warp(self, x: Tensor) -> Tensor:
        return evaluate(x, self.knots, self.heights, self.slopes)

    def unwarp(self, y: Tensor) -> Tensor:
        return invert(y, self.knots, self.heights, self.slopes)

    def fold(self, code: Tensor) -> Tensor:
        return self.decompress(code)

    def unfold(self, y: Tensor) -> Tensor:
        return y

    @torch.no_grad()
    def fit_plain(self, x: Tensor, held_out: Tensor, attn: Any, generator: torch.Generator) -> Error:
        """Fits like `fit` with identity splines: PCA."""
        knots = quantile_knots(x.to(self.mean.dtype), self.options.knots)
        self._bend(knots, torch.ones_like(knots[..., 1:]))
        return super().fit(x, held_out, attn, generator)

    @torch.no_grad()
    def fit(self, x: Tensor, held_out: Tensor, attn: Any, generator: torch.Generator) -> Error:
        x, root = x.to(self.mean.dtype), self._root(attn)
        knots = quantile_knots(x, self.options.knots)
        self.fit_plain(x, held_out, attn, generator)
        plain = Plane(self.mean.clone(), self.down.clone(), self.up.clone())
        slopes = fit_slopes(x, knots, self.kept_channels, epochs=self.options.epochs, root=root, generator=generator)
        self._bend(knots, slopes)
        plane = principal_plane(self.warp(x[None])[0], self.kept_channels, root)
        self._put(plane)
        lost = self._lost(held_out, root)
        better = lost < self.lost_by_pca  # [H]
        self.lost.copy_(torch.where(better, lost, self.lost_by_pca))
        self._bend(knots, torch.where(better[:, None, None], slopes, 1.0))
        self._put(Plane(*(torch.where(better[:, None, None], a, b) for a, b in zip(plane, plain, strict=True))))
        return Error(self.lost, self.lost_by_pca, self._lost(held_out, None))

    def _bend(self, knots: Tensor, slopes: Tensor) -> None:
        """Writes splines of knots [H, D, S + 1] and slopes [H, D, S] into the buffers."""
        self.knots.copy_(knots[:, None])
        self.heights.copy_(heights_of(knots, slopes)[:, None])
        self.slopes.copy_(slopes[:, None])
