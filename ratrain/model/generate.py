"""Text generation: one pass over the prompt, then one token at a time with a KV cache."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ratrain.model.cache import held_bytes
from ratrain.model.gpt2 import GPT2


@torch.inference_mode()
def decode(model: GPT2, tokens: Tensor) -> Tensor:
    """Computes logits [B, T, V] of tokens [B, T] one token at a time, as in generation."""
    caches = model.new_caches()
    return torch.cat([model.logits(tokens[:, t : t + 1], caches, start=t) for t in range(tokens.shape[1])], dim=1)


@dataclass
class DecodingStats:
    """Decoding statistics: tokens and seconds of the passes over them, and the bytes of the fullest cache."""

    prompt: int = 0
    prompt_seconds: float = 0.0
    tokens: int = 0  # decoded one at a time
    seconds: float = 0.0
    context: int = 0  # tokens in the fullest cache
    key_bytes: int = 0
    value_bytes: int = 0

    def note(self, fresh: int, seconds: float, caches: list[Any]) -> None:
        """Records one pass over `fresh` tokens."""
        if fresh > 1:
            self.prompt, self.prompt_seconds = self.prompt + fresh, self.prompt_seconds + seconds
        else:
            self.tokens, self.seconds = self.tokens + 1, self.seconds + seconds
        if caches[0].size >= self.context:
            sizes = [held_bytes(cache) for cache in caches]
            self.context = caches[0].size
            self.key_bytes, self.value_bytes = sum(k for k, _ in sizes), sum(v for _, v in sizes)


@torch.inference_mode()
def generate(
    model: GPT2,
    prompt: Tensor,
    *,
    count: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int = 0,
    stats: DecodingStats | None = None,
) -> Iterator[int]:
    """Yields `count` token ids that continue prompt [T]; the model must be in eval mode.

    When the context is full, the cache restarts from its second half: learned positions cannot slide. Temperature 0
    takes the most likely token. Raises ValueError on an empty prompt, FloatingPointError if logits are not finite.
    """
    if not len(prompt):
        raise ValueError("the prompt holds no token")
    generator = torch.Generator().manual_seed(seed)
    context, caches, start = prompt.tolist(), [], 0
    for _ in range(count):
        if not caches or start == model.spec.block_size:
            keep = max(1, model.spec.block_size // 2) if caches else model.spec.block_size
            caches = model.new_caches()
            start, fresh = 0, context[-keep:]
        else:
            fresh = context[-1:]
        begun = time.perf_counter()
        logits = model.logits(torch.tensor([fresh], device=prompt.device), caches, start)[0, -1].float().cpu()
        if stats is not None:
            stats.note(len(fresh), time.perf_counter() - begun, caches)
        if not logits.isfinite().all():
            raise FloatingPointError(f"the logits after {len(context)} tokens are not finite")
        start += len(fresh)
        context.append(_draw(logits, temperature, top_k, generator))
        yield context[-1]


def _draw(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        logits = logits.where(logits >= logits.topk(top_k).values[-1], float("-inf"))
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
