"""One interface to any decoder: logits for each position, a loss, and cached decoding if it has a cache."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ratrain.audit.source import described
from ratrain.contracts.perturbation import random_tokens
from ratrain.errors import DataError, UsageError

_LONGEST = 64  # tokens: longer contexts only cost time
_TARGETS = ("targets", "labels", "target", "y")
_SHIFTED_INSIDE = ("labels",)  # transformers takes the unshifted tokens and shifts them itself
_CONFIGS = ("config", "cfg", "conf", "args", "hparams", "params")
_LENGTHS = (
    *("block_size", "n_positions", "max_position_embeddings", "max_seq_len", "context_length", "n_ctx"),
    *("seq_len", "sequence_len", "max_length"),
)
_VOCABS = ("vocab_size", "n_vocab", "padded_vocab_size")


class ForeignModel:
    """A module that maps tokens [B, T] to logits [B, T, V], in any form of return value.

    Buffers are restored after every call, so that no call affects the next. Raises DataError if the module returns no
    logits for each position, UsageError if its vocabulary is unknown, or if there are fewer than 2 tokens or kinds.
    """

    def __init__(self, module: nn.Module, *, vocab_size: int | None = None, length: int | None = None, seed: int = 0):
        self.module, self.seed = module, seed
        self._built = _numbers(module)
        parameters = inspect.signature(module.forward).parameters
        self.targets = next((name for name in _TARGETS if name in parameters), None)
        self.needs_targets = self.targets is not None and parameters[self.targets].default is inspect.Parameter.empty
        self.decodes = {"past_key_values", "use_cache"} <= set(parameters)
        self.block_size = _number(module, _LENGTHS)
        self.dtype = torch.float64
        self.module.double().eval()
        self.why_not_double = self._narrow_if_needed()
        self.vocab_size = vocab_size or _number(module, _VOCABS) or self._vocabulary()
        self.length = length or self._longest()
        if self.length < 2 or self.vocab_size < 2:
            raise UsageError(f"expected at least 2 tokens of 2 kinds, got {self.length} of {self.vocab_size}")
        tokens = random_tokens(self.vocab_size, 2, self.length)
        possible = (*([] if self.needs_targets else [False]), *([True] if self.targets else []))
        self.ways = [way for way in possible if self._gives_logits(tokens, way)]
        if not self.ways:
            raise DataError(f"{type(module).__name__} gives no logits for each position: {self._said(tokens)}")

    @property
    def call(self) -> str:
        """The working forms of the call, as text."""
        ways = {False: "model(tokens)", True: f"model(tokens, {self.targets}=...)"}
        return " and ".join(ways[way] for way in self.ways)

    def logits(self, tokens: Tensor, *, seed: int = 0, call: Callable[..., Any] | None = None) -> Tensor:
        """Returns logits, [B, T] -> [B, T, V], in the module's current mode; in training with targets if it takes them.

        `call` is called in place of the module.
        """
        way = self.ways[-1] if self.module.training else self.ways[0]
        with self.buffers_kept(), torch.no_grad():
            found, _ = self._run(tokens, with_targets=way, seed=seed, call=call)
        assert found is not None
        return found

    def raw_logits(self, tokens: Tensor, *, training: bool) -> Tensor:
        """Returns logits in the given mode and keeps the call's changes of buffers."""
        self.module.train(training)
        with torch.no_grad():
            found, _ = self._run(tokens, with_targets=self.ways[-1] if training else self.ways[0])
        assert found is not None
        return found

    def noisy(self, tokens: Tensor) -> bool:
        """Whether two calls in the current mode, with different seeds, differ."""
        return not torch.equal(self.logits(tokens, seed=0), self.logits(tokens, seed=1))

    @property
    def moved(self) -> dict[str, str]:
        """Plain numeric attributes of modules that calls have changed since the build: their old and new values."""
        now = _numbers(self.module)
        return {n: f"{v!r} is {now.get(n)!r}" for n, v in self._built.items() if now.get(n) != v}

    @property
    def shifts_inside(self) -> bool:
        """Whether the model takes the unshifted tokens as targets and shifts them itself."""
        return self.targets in _SHIFTED_INSIDE

    def targets_for(self, tokens: Tensor) -> Tensor:
        """Returns targets [B, T] as the model takes them; if it does not shift them, the last target is token 0."""
        return tokens.clone() if self.shifts_inside else torch.cat([tokens[:, 1:], tokens[:, :1] * 0], dim=1)

    def with_loss(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Returns logits [B, T, V] and the model's own loss; None for either if the model does not return it."""
        if self.targets is None:
            return None, None
        with self.buffers_kept(), torch.no_grad():
            torch.manual_seed(self.seed)
            return _read(self.module(tokens, **{self.targets: targets}), tokens)

    def gradients(self, tokens: Tensor, *, until: int) -> dict[str, Tensor]:
        """Returns the gradients of a sum over the logits before token `until`, weighted by fixed noise, for each
        parameter with one."""
        self.module.zero_grad(set_to_none=True)
        with self.buffers_kept():
            found, _ = self._run(tokens, with_targets=self.ways[0])
            assert found is not None
            seen = found[:, :until]
            noise = torch.randn(seen.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            (seen * noise.to(seen.dtype)).sum().backward()
        return {name: p.grad.clone() for name, p in self.module.named_parameters() if p.grad is not None}

    @contextlib.contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Sets dropout to 0 in the block: of torch's dropout modules, and float attributes with "drop" in their
        name."""
        changed: list[tuple[nn.Module, str, float]] = []
        for module in self.module.modules():
            names = ["p"] if isinstance(module, nn.modules.dropout._DropoutNd) else []
            names += [n for n, v in vars(module).items() if "drop" in n and isinstance(v, float)]
            for name in names:
                changed.append((module, name, getattr(module, name)))
                setattr(module, name, 0.0)
        try:
            yield
        finally:
            for module, name, value in changed:
                setattr(module, name, value)

    def backward(self, tokens: Tensor) -> None:
        """Adds the gradients of the next-token loss: the model's own loss, or the cross-entropy if it has none."""
        with self.buffers_kept():
            logits, loss = self._run(tokens, with_targets=self.targets is not None)
            if loss is None or not loss.requires_grad:
                logits = self._run(tokens, with_targets=self.ways[0])[0] if logits is None else logits
                assert logits is not None
                loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).to(self.dtype), tokens[:, 1:].flatten())
            loss.backward()

    def decode(self, tokens: Tensor, sizes: list[int]) -> Tensor | None:
        """Returns logits [B, T, V] of tokens given in pieces of these sizes; earlier pieces are only in the cache.

        None if the model returns no cache, in spite of its signature.
        """
        past, found = None, []
        with torch.no_grad():
            for piece in tokens.split(sizes, dim=1):
                output = self.module(piece, past_key_values=past, use_cache=True)
                past = _get(output, "past_key_values")
                logits, _ = _read(output, piece)
                if past is None or logits is None:
                    return None
                found.append(logits)
        return torch.cat(found, dim=1)

    def _run(
        self, tokens: Tensor, *, with_targets: bool, seed: int = 0, call: Callable[..., Any] | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        torch.manual_seed(self.seed + seed)  # the same dropout masks
        call = self.module if call is None else call
        if not with_targets or self.targets is None:
            return _read(call(tokens), tokens)
        return _read(call(tokens, **{self.targets: self.targets_for(tokens)}), tokens)

    @contextlib.contextmanager
    def buffers_kept(self) -> Iterator[None]:
        """Restores buffers after the block."""
        before = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        yield
        with torch.no_grad():
            for name, buffer in self.module.named_buffers():
                if name in before and before[name].shape == buffer.shape:
                    buffer.copy_(before[name])

    def _narrow_if_needed(self) -> str | None:
        """Falls back to fp32 if float64 does not run; returns the reason, or None."""
        tokens = torch.zeros(1, 2, dtype=torch.int64)
        try:
            self._try(tokens)
        except RuntimeError as error:
            self.module.float()
            self.dtype = torch.float32
            self._try(tokens)  # an error here is the model's own
            return described(error)
        return None

    def _try(self, tokens: Tensor) -> Tensor | None:
        with self.buffers_kept(), torch.no_grad():
            return self._run(tokens, with_targets=self.needs_targets)[0]

    def _vocabulary(self) -> int:
        """Returns the vocabulary size: the width of the logits, or else the size of the largest embedding table. Raises
        UsageError without either."""
        found = self._try(torch.zeros(1, 2, dtype=torch.int64))
        tables = [m.num_embeddings for m in self.module.modules() if isinstance(m, nn.Embedding)]
        if found is not None:
            return found.shape[-1]
        if not tables:
            raise UsageError(f"{type(self.module).__name__}: its vocabulary size is unknown; --vocab N gives it")
        return max(tables)

    def _longest(self) -> int:
        """Returns the block size, or without one the longest accepted input found by halving; at most 64 tokens."""
        length = min(self.block_size or _LONGEST, _LONGEST)
        while self.block_size is None and length > 2:
            try:
                self._try(torch.zeros(1, length, dtype=torch.int64))
                break
            except Exception:
                length //= 2
        return length

    def _gives_logits(self, tokens: Tensor, way: bool) -> bool:
        with self.buffers_kept(), torch.no_grad():
            return self._run(tokens, with_targets=way)[0] is not None

    def _said(self, tokens: Tensor) -> str:
        with self.buffers_kept(), torch.no_grad():
            output = self.module(tokens, **({str(self.targets): tokens} if self.needs_targets else {}))
        shapes = [str(list(t.shape)) for t in _tensors(output)]
        return f"for tokens {list(tokens.shape)} it returns {', '.join(shapes) or type(output).__name__}"


def _read(output: Any, tokens: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Reads logits [B, T, V] and a loss from an output, None for a missing one; logits of the last position alone do
    not count."""
    found = list(_tensors(output))
    logits = next((t for t in found if t.dim() == 3 and t.shape[:2] == tokens.shape), None)
    if logits is None:  # some models flatten them for the loss
        flat = next((t for t in found if t.dim() == 2 and t.shape[0] == tokens.numel()), None)
        logits = None if flat is None else flat.view(*tokens.shape, -1)
    return logits, next((t for t in found if t.numel() == 1 and t.dim() < 2), None)


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yields the candidate tensors for logits and loss: the output itself, its items, or its `logits` and `loss`."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        yield from (item for item in output if isinstance(item, Tensor))
    else:
        yield from (t for t in (_get(output, "logits"), _get(output, "loss")) if isinstance(t, Tensor))


def _get(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _number(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """Returns the first positive integer of the module's config or the module under one of these names; None without
    one."""
    for holder in (*(getattr(module, name, None) for name in _CONFIGS), module):
        for name in names:
            value = holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _numbers(module: nn.Module) -> dict[str, Any]:
    """Returns the public numeric and boolean attributes of modules by their path, except `training`."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, (bool, int, float)) and name != "training" and not name.startswith("_")
    }
