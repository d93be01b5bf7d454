"""The base class of the modules that patches put into the model, with every hook that ratrain calls on them.

All hooks are optional, and a module of any class may have them; `Mechanism` names them in one place, gives their
defaults, and owns the activation `s`. A class overrides the hooks that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.cache import PLAIN, ValueCode

_F = TypeVar("_F", bound=Callable[..., Any])


def _default(hook: _F) -> _F:
    hook.is_default = True  # type: ignore[attr-defined]
    return hook


def offers(module: nn.Module, hook: str) -> bool:
    """Whether the module has a hook of its own, and not the default of `Mechanism`."""
    return hasattr(module, hook) and not getattr(getattr(module, hook), "is_default", False)


def that_offer(modules: Iterator[nn.Module], hook: str) -> list[Any]:
    """Those of `modules` that have the hook."""
    return [module for module in modules if offers(module, hook)]


class Mechanism(nn.Module):
    """A module whose activation `s` moves from 0, the base model exactly, to 1, the mechanism.

    It is built on the meta device: the constructor declares parameters and buffers, `reset_parameters` fills them.
    """

    s: Tensor  # 0-d buffer, moved by the activation schedule

    decayed: Sequence[str] = ()  # names of its own parameters that weight decay applies to
    gradual: bool | None = None  # set when the model is built, unless None: whether s may lie between 0 and 1
    kept_channels: int | None = None  # channels per head in which a value seam caches values; None: head_dim
    reach: int = 0  # inputs before a token that a module at `attn.local` reads
    fitted: Tensor  # of a module with `fit`: a 0-d buffer, not 0 once it has been fitted
    vectors: int  # of a module with `fit`: how many samples per head it wants

    def __init__(self):
        super().__init__()
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Fills the module's own parameters and buffers, drawing from `generator` alone."""
        self.s.fill_(1.0)

    # -- costs ---------------------------------------------------------------------------------------------------

    @_default
    def flops_per_token(self, spec: ModelSpec) -> int:
        """FLOPs of the matrix products of a forward pass, per token, where it forms any outside of its submodules."""
        return 0

    @_default
    def code(self) -> ValueCode:
        """How the cache keeps the values that this value seam returns."""
        return PLAIN

    # -- training ------------------------------------------------------------------------------------------------

    @_default
    def penalty(self) -> Tensor:
        """A term added to the training loss, 0-d, in nats per token."""
        return torch.zeros(())

    @_default
    def settle(self, total: Callable[[Tensor], Tensor]) -> None:
        """Moves running statistics, once per optimizer step; `total` sums a tensor over the processes."""

    @_default
    def forget(self) -> None:
        """Drops statistics that were gathered since the last `settle`."""

    # -- closed-form fits (engine/parts/fitting.py) ------------------------------------------------------------------

    @_default
    def fit(self, x: Tensor, held_out: Tensor, attn: nn.Module, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Fits buffers to samples x [H, N, D] of its own first argument.

        Returns errors [H] relative to the variance on `held_out`: of this fit, of PCA, and of values by this fit.
        """
        raise NotImplementedError

    @_default
    def fit_plain(self, x: Tensor, held_out: Tensor, attn: nn.Module, generator: torch.Generator) -> tuple[Tensor, ...]:
        """As `fit`, by the method that a fit has to beat."""
        raise NotImplementedError

    # -- observation (engine/parts/probes.py) ------------------------------------------------------------------------

    def probes(self) -> dict[str, Tensor]:
        """Tensors made of its parameters, one value or one per head, by name: read with every window."""
        return {}

    @_default
    def observe_attention(self, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        """Values, one or one per head, of the layer's queries, keys and values [B, H, T, D]: with every evaluation."""
        return {}

    @_default
    def observe_mlp(self, down: nn.Module, hidden: Tensor, gate: Tensor) -> dict[str, Tensor]:
        """Values, one or one per head, of the inputs of the layer's `mlp.down`: with every evaluation."""
        return {}


def score_share(part: tuple[Tensor, Tensor], whole: tuple[Tensor, Tensor]) -> Tensor:
    """Variance [H] of the scores of one pair (queries, keys) over that of another.

    A share can exceed 1: the parts may go together or against each other.
    """
    return _score_variance(*part) / _score_variance(*whole)


def output_share(part: Tensor, whole: Tensor) -> Tensor:
    """Variance over tokens of one output [B, T, C] over that of another, each summed over channels: [1]."""
    return (_variance(part) / _variance(whole))[None]


def _score_variance(q: Tensor, k: Tensor) -> Tensor:
    """Variance [H] of q_i . k_j over j <= i, around each query's mean, which the softmax does not see."""
    scores = q.float() @ k.float().mT  # [B, H, T, T]
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    mean = (scores * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)
    return ((scores - mean) * seen).square().sum((0, 2, 3))


def _variance(y: Tensor) -> Tensor:
    """Over tokens, summed over channels: 0-d."""
    return y.float().flatten(0, 1).var(0).sum()
