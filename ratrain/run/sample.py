"""Samples text from a trained run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ratrain.config.read import read_source
from ratrain.config.resolve import resolve
from ratrain.config.schema import Manifest
from ratrain.data.tokenizer import tokenizer_of
from ratrain.engine.parts.fitting import fittable, unfitted
from ratrain.errors import DataError, MissingError, UsageError
from ratrain.machine.device import pick_device
from ratrain.model.build import build
from ratrain.model.generate import DecodingStats, generate
from ratrain.model.gpt2 import GPT2
from ratrain.registry import optim_kinds, patch_kinds
from ratrain.storage.checkpoint import Checkpoint, load_newest, require_same_tensors
from ratrain.storage.folder import find_run


def sample(
    run: str,
    prompt: str,
    *,
    root: Path,
    count: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    device: str,
    warn: Callable[[str], None],
    on_stats: Callable[[Decoded], None] | None = None,
) -> Iterator[str]:
    """Yields the prompt, then pieces of text sampled from the run's newest checkpoint that verifies.

    `on_stats` is called at the end with the cost of the decoding.
    """
    manifest, model = load_run(find_run(run, root), device=pick_device(device), warn=warn)
    tokenizer = tokenizer_of(manifest.data)
    context = _prompt_of(manifest, prompt)
    yield prompt
    tokens = torch.tensor(context, device=model.wte.weight.device)
    held = b""  # bytes of an incomplete character
    stats = DecodingStats()
    drawn = generate(model, tokens, count=count, temperature=temperature, top_k=top_k, seed=seed, stats=stats)
    for token in _finite(drawn, run):
        held += b"\n\n" if token == tokenizer.eot_token else tokenizer.decode_single_token_bytes(token)
        text = held.decode(errors="ignore")
        if text.encode() == held or len(held) > 4:
            yield held.decode(errors="replace")
            held = b""
    if on_stats:
        on_stats(_decoded(stats, model))


def _prompt_of(manifest: Manifest, text: str) -> list[int]:
    """Returns the tokens of a prompt; as in training, a document begins after the end-of-text token."""
    tokenizer, size = tokenizer_of(manifest.data), manifest.model.vocab_size
    context = [tokenizer.eot_token, *tokenizer.encode_ordinary(text)]
    if beyond := next((token for token in context if token >= size), None):
        raise UsageError(f"--prompt: {beyond} is no symbol: the vocabulary ends at {size - 1}")
    return context


def _finite(tokens: Iterator[int], run: str) -> Iterator[int]:
    """Yields the same tokens. Raises DataError if the model's logits are not finite."""
    try:
        yield from tokens
    except FloatingPointError as error:
        raise DataError(f"{run}: {error}: this run has diverged; lower schedule.lr and train it again") from error


@dataclass(frozen=True)
class Decoded:
    """The cost of drawing a text: bytes of the KV cache per token of `context`, and tokens per second.

    `dense_bytes` are those that dense attention keeps per token. Rates are None if there were no such tokens.
    """

    context: int
    key_bytes: float
    value_bytes: float
    dense_bytes: int
    tokens: int
    tokens_per_second: float | None
    prompt: int
    prompt_tokens_per_second: float | None

    def __str__(self) -> str:
        if not self.context:
            return "nothing was drawn"
        kept = self.key_bytes + self.value_bytes
        lines = [
            f"cache at {self.context} tokens: {kept:,.0f} bytes a token, {self.key_bytes:,.0f} of keys and "
            f"{self.value_bytes:,.0f} of values ({100 * kept / self.dense_bytes:.0f} % of the {self.dense_bytes:,} "
            "that dense attention keeps)"
        ]
        if self.tokens_per_second is not None:
            lines.append(f"decoding: {self.tokens_per_second:,.0f} tokens/s over {self.tokens} tokens")
        if self.prompt_tokens_per_second is not None:
            rate = f"{self.prompt_tokens_per_second:,.0f} tokens/s"
            lines.append(f"prompt: {rate} over {self.prompt} tokens in one pass")
        return "\n".join(lines)


def _decoded(stats: DecodingStats, model: GPT2) -> Decoded:
    dense, context = 2 * model.spec.n_layer * model.spec.n_embd * model.wte.weight.element_size(), stats.context
    return Decoded(
        context=context,
        key_bytes=stats.key_bytes / context if context else 0.0,
        value_bytes=stats.value_bytes / context if context else 0.0,
        dense_bytes=dense,
        tokens=stats.tokens,
        tokens_per_second=stats.tokens / stats.seconds if stats.tokens else None,
        prompt=stats.prompt,
        prompt_tokens_per_second=stats.prompt / stats.prompt_seconds if stats.prompt else None,
    )


def load_run(folder: Path, *, device: torch.device, warn: Callable[[str], None]) -> tuple[Manifest, GPT2]:
    """Returns the manifest of a run and its model; as `load_step`."""
    manifest, model, _ = load_step(folder, device=device, warn=warn)
    return manifest, model


def load_step(folder: Path, *, device: torch.device, warn: Callable[[str], None]) -> tuple[Manifest, GPT2, int]:
    """Returns the manifest of a run, its model in eval mode with the newest weights that verify, and their step.

    `warn` receives a message for each newer checkpoint that does not verify, and for each patch never fitted.
    Raises MissingError if the run has no checkpoint.
    """
    source = read_source(folder / "resolved.toml")
    kinds = patch_kinds(beside=source.files)
    manifest = resolve(source, patches=kinds, optimizers=optim_kinds())
    checkpoint, path, failures = load_newest(folder / "checkpoints")
    if checkpoint is None:
        raise MissingError(f"{folder}: has no checkpoint yet")
    for failure in failures:
        warn(f"{failure}; going back to {path}")
    model = with_weights(build(manifest, device=device), checkpoint)
    for name in dict.fromkeys(name for name, _, module in fittable(model) if not module.fitted):
        warn(unfitted(name))
    return manifest, model, checkpoint.step


def with_weights(model: GPT2, checkpoint: Checkpoint) -> GPT2:
    """Loads the checkpoint's weights into `model`; returns it in eval mode. Raises DataError if the tensors differ."""
    require_same_tensors(model.state_dict(), checkpoint)
    model.load_state_dict(dict(checkpoint.model))
    return model.eval()
