"""Drawing text: one pass over the prompt, then a token at a time with a KV cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ratrain.model.gpt2 import GPT2


class KVCache:
    """What one layer's attention core keeps of each token (keys and values), in storage for `length` tokens.

    `size` is the number of tokens so far, and so the position of the next one.
    """

    def __init__(self, length: int):
        self.length, self.size = length, 0
        self.held: list[Tensor] = []  # each [B, H, length, channels]

    def append(self, *fresh: Tensor) -> tuple[Tensor, ...]:
        """Adds tensors [B, H, S, channels], the same at every call; returns each for all tokens so far, as views."""
        self.held = self.held or [t.new_empty(*t.shape[:2], self.length, t.shape[3]) for t in fresh]
        start, self.size = self.size, self.size + fresh[0].shape[2]
        for held, new in zip(self.held, fresh, strict=True):
            held[:, :, start : self.size] = new
        return tuple(held[:, :, : self.size] for held in self.held)


@torch.inference_mode()
def decode(model: GPT2, tokens: Tensor) -> Tensor:
    """Logits [B, T, V] of tokens [B, T] computed one token at a time: what generation sees."""
    caches = [KVCache(model.spec.block_size) for _ in model.blocks]
    return torch.cat([model.logits(tokens[:, t : t + 1], caches, start=t) for t in range(tokens.shape[1])], dim=1)


@torch.inference_mode()
def generate(
    model: GPT2, prompt: Tensor, *, count: int, temperature: float = 0.8, top_k: int | None = 50, seed: int = 0
) -> Iterator[int]:
    """Yields `count` token ids that continue prompt [T]; the model must be in eval mode.

    When the context is full the cache starts again from its second half: learned positions cannot slide.
    Temperature 0 takes the likeliest token. Raises ValueError on an empty prompt.
    """
    if not len(prompt):
        raise ValueError("the prompt holds no token")
    generator = torch.Generator().manual_seed(seed)
    context, caches, start = prompt.tolist(), [], 0
    for _ in range(count):
        if not caches or start == model.spec.block_size:
            keep = max(1, model.spec.block_size // 2) if caches else model.spec.block_size
            caches = [KVCache(model.spec.block_size) for _ in model.blocks]
            start, fresh = 0, context[-keep:]
        else:
            fresh = context[-1:]
        logits = model.logits(torch.tensor([fresh], device=prompt.device), caches, start)[0, -1].float().cpu()
        start += len(fresh)
        context.append(_draw(logits, temperature, top_k, generator))
        yield context[-1]


def _draw(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        logits = logits.where(logits >= logits.topk(top_k).values[-1], float("-inf"))
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
