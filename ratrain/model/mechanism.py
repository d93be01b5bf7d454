"""The base class of modules that patches add to the model, with every hook that ratrain calls on them.

All hooks are optional, and a module of any class may define them. `Mechanism` lists them in one place, provides
defaults, and owns the activation `s`. A class overrides the hooks that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
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
    """Whether the module defines the hook itself, instead of inheriting the default of `Mechanism`."""
    return hasattr(module, hook) and not getattr(getattr(module, hook), "is_default", False)


def that_offer(modules: Iterator[nn.Module], hook: str) -> list[Any]:
    """Returns the `modules` that define the hook."""
    return [module for module in modules if offers(module, hook)]


def own_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields names and modules as `named_modules`, without those that a class from elsewhere made (`constructed`).

    Their attributes are not hooks, whatever their names.
    """
    foreign: list[str] = []
    for name, module in root.named_modules():  # a parent before its children
        if not any(name == place or name.startswith(f"{place}.") for place in foreign):
            foreign += [f"{name}.{child}".lstrip(".") for child in getattr(module, "constructed", ())]
            yield name, module


class Mechanism(nn.Module):
    """A module whose activation `s` moves from 0, exactly the base model, to 1, the mechanism.

    It is built on the meta device: the constructor declares parameters and buffers, `reset_parameters` fills them.
    """

    s: Tensor  # 0-d buffer, moved by the activation schedule

    decayed: Sequence[str] = ()  # names of its own parameters with weight decay
    # by parameter: the dimension over which a product sums its inputs; None: it scales, shifts or picks. muP needs it
    # of parameters of two dimensions or more that grow with the width, and of vectors u in sums u . x over channels
    fan_in: Mapping[str, int | None] = MappingProxyType({})
    constructed: Sequence[str] = ()  # children whose constructor fills them: they have no hooks of ratrain
    gradual: bool | None = None  # whether s may lie between 0 and 1; the build sets it unless None
    kept_channels: int | None = None  # cached channels per head of a value seam; None: head_dim
    reach: int = 0  # inputs before a token that a module at `attn.local` reads
    fitted: Tensor  # of a module with `fit`: a 0-d buffer, nonzero once fitted
    vectors: int  # of a module with `fit`: number of samples per head

    def __init__(self):
        super().__init__()
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Fills the module's own parameters and buffers, drawing from `generator` alone."""
        self.s.fill_(1.0)

    @_default
    def construct(self, generator: torch.Generator) -> None:
        """Replaces the children named in `constructed` by filled ones on the CPU, drawing from `generator` alone."""

    # -- costs ---------------------------------------------------------------------------------------------------

    @_default
    def flops_per_token(self, spec: ModelSpec) -> int:
        """Returns forward FLOPs per token of the matrix products that the module itself forms, without submodules."""
        return 0

    @_default
    def code(self) -> ValueCode:
        """Returns the cache's storage format of the values that this value seam returns."""
        return PLAIN

    # -- training ------------------------------------------------------------------------------------------------

    @_default
    def penalty(self) -> Tensor:
        """Returns a term, 0-d, in nats per token, whose gradient is added to that of the training loss."""
        return torch.zeros(())

    @_default
    def settle(self, total: Callable[[Tensor], Tensor]) -> None:
        """Updates running statistics once per optimizer step; `total` sums a tensor over the processes."""

    @_default
    def forget(self) -> None:
        """Drops statistics accumulated since the last `settle`."""

    # -- closed-form fits (engine/parts/fitting.py) ------------------------------------------------------------------

    @_default
    def fit(self, x: Tensor, held_out: Tensor, attn: nn.Module, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Fits buffers to samples x [H, N, D] of the module's first argument.

        Returns errors [H] relative to the variance on `held_out`: of this fit, of PCA, and of values under this fit.
        """
        raise NotImplementedError

    @_default
    def fit_plain(self, x: Tensor, held_out: Tensor, attn: nn.Module, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Fits buffers by the baseline method that `fit` has to beat."""
        raise NotImplementedError

    # -- observation (engine/parts/probes.py) ------------------------------------------------------------------------

    def probes(self) -> dict[str, Tensor]:
        """Returns tensors derived from parameters, one value or one per head, by name; read at every window."""
        return {}

    @_default
    def observe_attention(self, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        """Returns statistics, one or one per head, of queries, keys and values [B, H, T, D]; at every evaluation."""
        return {}

    @_default
    def observe_mlp(self, down: nn.Module, hidden: Tensor, gate: Tensor) -> dict[str, Tensor]:
        """Returns statistics, one or one per head, of the inputs of the layer's `mlp.down`; at every evaluation."""
        return {}


def score_share(part: tuple[Tensor, Tensor], whole: tuple[Tensor, Tensor]) -> Tensor:
    """Returns the variance [H] of the scores of one pair (queries, keys) over that of another.

    A share can exceed 1: parts may be positively or negatively correlated.
    """
    return _score_variance(*part) / _score_variance(*whole)


def output_share(part: Tensor, whole: Tensor) -> Tensor:
    """Returns the variance over tokens of one output [B, T, C] over that of another, summed over channels: [1]."""
    return (_variance(part) / _variance(whole))[None]


def _score_variance(q: Tensor, k: Tensor) -> Tensor:
    """Sums squares [H] of q_i . k_j over j <= i, around each query's mean, to which the softmax is invariant."""
    scores = q.float() @ k.float().mT  # [B, H, T, T]
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    mean = (scores * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)
    return ((scores - mean) * seen).square().sum((0, 2, 3))


def _variance(y: Tensor) -> Tensor:
    """Returns the variance over tokens, summed over channels: 0-d."""
    return y.float().flatten(0, 1).var(0).sum()
