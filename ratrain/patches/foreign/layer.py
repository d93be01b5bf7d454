"""Foreign modules in a layer of the model: the tensors of a call, activation, decoding, and costs.

Shape letters: B batch, S newest tokens, T tokens, C channels, D head_dim.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ratrain.config.schema import ModelSpec
from ratrain.errors import OptionError
from ratrain.model.cache import InputCache, new_cache, remember
from ratrain.model.count import kept
from ratrain.model.gpt2 import MLP, Attention, Block
from ratrain.model.rotary import BASE
from ratrain.patches.foreign.recipe import Recipe, apart, told


def causal_mask(x: Tensor, head_dim: int) -> Tensor:
    """Returns [T, T], true where a position must not look: at later tokens."""
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)


def causal_bias(x: Tensor, head_dim: int) -> Tensor:
    """Returns [1, 1, T, T] to add to scores: 0, and -inf at later tokens."""
    return x.new_zeros(1, 1, x.shape[1], x.shape[1]).masked_fill(causal_mask(x, head_dim), float("-inf"))


def positions(x: Tensor, head_dim: int) -> Tensor:
    """Returns [1, T], int64, from 0."""
    return torch.arange(x.shape[1], device=x.device)[None]


def rope(x: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines [1, T, D] of rotary positions, channel p paired with channel p + D / 2."""
    pairs = torch.arange(0, head_dim, 2, device=x.device, dtype=torch.float64)
    angle = torch.arange(x.shape[1], device=x.device)[:, None] * BASE ** (-pairs / head_dim)  # [T, D / 2]
    angle = torch.cat([angle, angle], dim=-1)[None]
    return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


_TENSORS: dict[str, Callable[[Tensor, int], Any]] = {
    "x": lambda x, head_dim: x,
    "causal_mask": causal_mask,
    "causal_bias": causal_bias,
    "positions": positions,
    "rope": rope,
}


class Call:
    """A call of a foreign module: fixed keyword arguments, and tensors by name."""

    def __init__(self, call: Mapping[str, Any], spec: ModelSpec, sizes: Mapping[str, Any]):
        self.head_dim, self.names_x = spec.head_dim, "$x" in _strings(call)
        self.arguments = {name: _with_sizes(value, sizes) for name, value in call.items()}

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """Returns the module's output [B, T, C] for x [B, T, C], in the dtype of x."""
        given = {name: self._value(value, x) for name, value in self.arguments.items()}
        # in training with bf16 weights a foreign module keeps fp32 ones, which autocast rounds
        narrow = x.dtype == torch.bfloat16
        with torch.autocast(x.device.type, torch.bfloat16) if narrow else contextlib.nullcontext():
            out = module(**given) if self.names_x else module(x, **given)
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        if not isinstance(first, Tensor):
            raise TypeError(f"it returns {type(out).__name__}; expected a tensor, or a tuple that begins with one")
        return first.to(x.dtype)

    def _value(self, value: Any, x: Tensor) -> Any:
        if isinstance(value, list):
            return [self._value(child, x) for child in value]
        if isinstance(value, dict):
            return {name: self._value(child, x) for name, child in value.items()}
        return _TENSORS[value[1:]](x, self.head_dim) if isinstance(value, str) and value[:1] == "$" else value


def _with_sizes(value: Any, sizes: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_with_sizes(child, sizes) for child in value]
    if isinstance(value, dict):
        return {name: _with_sizes(child, sizes) for name, child in value.items()}
    return sizes[value[1:]] if isinstance(value, str) and value[:1] == "$" and value[1:] in sizes else value


def _strings(value: Any) -> list[str]:
    if isinstance(value, (list, dict)):
        return [text for child in (value.values() if isinstance(value, dict) else value) for text in _strings(child)]
    return [value] if isinstance(value, str) else []


class Foreign(nn.Module):
    """A foreign module, and the part that it replaces if a schedule switches from one to the other.

    old + s (new - old), exactly `old` at 0 and exactly `new` at 1. Decoding keeps the inputs of all tokens and calls
    the module with all of them.
    """

    constructed = ("module",)
    s: Tensor  # activation, moved by the schedule; absent without `old`

    def __init__(self, old: nn.Module | None, spec: ModelSpec, recipe: Recipe, call: Call, *, name: str):
        super().__init__()
        self.recipe, self.call, self.length, self.name = recipe, call, spec.block_size, name
        self.module = recipe.made("meta")
        self.flops = _tried(self.module, recipe, call, spec)
        self.old = old
        if old is not None:
            self.register_buffer("s", torch.empty(()))

    @property
    def decayed(self) -> tuple[str, ...]:
        """The parameters of the foreign module with two dimensions or more."""
        return tuple(f"module.{name}" for name, p in self.module.named_parameters() if p.dim() > 1)

    def construct(self, generator: torch.Generator) -> None:
        self.module = self.recipe.made("cpu", seed=int(torch.randint(2**62, (), generator=generator)))

    def reset_parameters(self, generator: torch.Generator) -> None:
        if self.old is not None:
            self.s.fill_(1.0)

    def flops_per_token(self, spec: ModelSpec) -> int:
        """Returns the traced FLOPs at `block_size` tokens, per token, of the foreign module alone."""
        return self.flops

    def kv_per_token(self, spec: ModelSpec) -> tuple[int, int]:
        """Returns the cached elements per token: the inputs, as values, and the cache of `old`."""
        keys, values = kept(self.old, spec) if isinstance(self.old, (Attention, Block)) else (0, 0)
        return keys, values + spec.n_embd

    def new(self, x: Tensor, cache: Any) -> Tensor:
        """Returns the foreign module's output [B, S, C] for the newest tokens x [B, S, C]."""
        if cache is None:
            return self.call(self.module, x)
        whole = remember(cache, self.name, x, self.length).contiguous()  # a foreign module may call view()
        return self.call(self.module, whole)[:, -x.shape[1] :]

    def mixed(self, old: Tensor, new: Tensor) -> Tensor:
        return torch.lerp(old, new.to(old.dtype), self.s.to(old.dtype))


class ForeignLayer(Foreign):
    """In place of attention or a block; a state between layers passes through."""

    def forward(self, x: Tensor, state: Tensor | None, cache: Any = None) -> tuple[Tensor, Tensor | None]:
        """Maps x [B, S, C] and the state from the layer below -> y [B, S, C] and the state for the next layer."""
        new = self.new(x, cache)
        if self.old is None:
            return new, state
        old, state = self.old(x, state, cache)
        return self.mixed(old, new), state

    def new_cache(self, length: int) -> Any:
        if isinstance(self.old, Attention):
            return self.old.core.new_cache(length)
        return InputCache() if self.old is None else new_cache(self.old, length)


class ForeignMLP(Foreign):
    """In place of an MLP."""

    caches = True

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:  # [B, S, C] -> [B, S, C]
        new = self.new(x, cache)
        return new if self.old is None else self.mixed(self.old(x), new)


def replacement(
    old: nn.Module, spec: ModelSpec, recipe: Recipe, *, call: Mapping[str, Any], place: str, switched: bool
) -> nn.Module:
    """Returns the layer with a module made by `recipe` in place of `old`, kept inside if `switched`.

    Raises OptionError if there is no such place, or the module cannot be made, called or used.
    """
    if not isinstance(old, (Attention, MLP, Block)):
        raise OptionError(
            f"{place!r} is no place for a module; expected blocks.*.attn, blocks.*.mlp or blocks.*", "target"
        )
    layer = ForeignMLP if isinstance(old, MLP) else ForeignLayer
    name = type(old).__name__
    return layer(old if switched else None, spec, recipe, Call(call, spec, recipe.sizes), name=name)


def _tried(module: nn.Module, recipe: Recipe, call: Call, spec: ModelSpec) -> int:
    """Calls the module once on x [1, T, C], T = block_size, without data; returns its FLOPs per token, rounded.

    A module that cannot run on the meta device runs on the CPU. Raises OptionError for a call that fails, or an output
    or state that cannot be used.
    """
    named = set(_names(module))
    try:
        out, flops = _traced(module, call, spec, "meta")
    except Exception:
        module = recipe.made("cpu")
        try:
            out, flops = _traced(module, call, spec, "cpu")
        except (Exception, SystemExit) as error:
            raise OptionError(f"the module cannot be called so: {told(error)}", "call") from error
    shape = (1, spec.block_size, spec.n_embd)
    if tuple(out.shape) != shape:
        raise OptionError(f"returns {list(out.shape)} for x {list(shape)}; expected the same shape [B, T, C]", "use")
    if more := sorted(set(_names(module)) - named):
        what = f"creates {', '.join(more)} in its first call; a checkpoint holds only tensors of the constructor"
        raise OptionError(what, "use")
    return round(flops / spec.block_size)


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in (*module.named_parameters(), *module.named_buffers())]


def _traced(module: nn.Module, call: Call, spec: ModelSpec, device: str) -> tuple[Tensor, int]:
    """Returns the output for x [1, T, C] on `device`, and the FLOPs of the call."""
    with apart(0), torch.no_grad(), torch.device(device), sdpa_kernel(SDPBackend.MATH):
        x = torch.zeros(1, spec.block_size, spec.n_embd)
        with FlopCounterMode(display=False) as counter:
            out = call(module, x)
    return out, counter.get_total_flops()
