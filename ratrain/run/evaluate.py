"""Evaluates the newest weights of a run on held-out text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ratrain.config.schema import Manifest
from ratrain.data.corpus import open_corpus
from ratrain.data.sampling import validation_windows
from ratrain.data.tokenizer import bits_per_byte
from ratrain.engine.evaluate import Evaluator
from ratrain.engine.step import Precision
from ratrain.machine.device import pick_device
from ratrain.model.digests import DIGITS, digest_of
from ratrain.model.gpt2 import GPT2
from ratrain.run.sample import load_step


@dataclass(frozen=True)
class HeldOut:
    """The loss in nats per token on `tokens` targets, and in bits per byte of their text.

    `windows` and `corpus` are digests: only losses on the same windows can be compared.
    """

    step: int
    loss: float
    bits_per_byte: float
    tokens: int
    windows: str
    corpus: str


def evaluate(run: Path, *, device: str, warn: Callable[[str], None], count: int | None = None) -> HeldOut:
    """Evaluates a run on `count` validation windows, by default those of its manifest.

    Raises MissingError without a checkpoint, DataError if none verifies, and what opening the corpus raises.
    """
    manifest, model, step = load_step(run, device=pick_device(device), warn=warn)
    if manifest.eval.ema:
        warn(f"{run}: in training, averaged weights are evaluated (eval.ema); here those of step {step} alone")
    return held_out(manifest, model, step, count=count)


@torch.no_grad()
def held_out(manifest: Manifest, model: GPT2, step: int, *, count: int | None = None) -> HeldOut:
    """Evaluates a model, in eval mode, on validation windows of the manifest's corpus. Raises as `open_corpus`."""
    spec = manifest.model
    corpus = open_corpus(manifest.data, vocab_size=spec.vocab_size, block_size=spec.block_size)
    windows = validation_windows(corpus.val, block_size=spec.block_size, count=count or manifest.eval.windows)
    precision = Precision(manifest.train.precision, model)
    evaluator = Evaluator(model, windows, precision=precision, batch=manifest.train.micro_batch)
    loss = float(evaluator.losses().mean())
    bits = bits_per_byte(loss, evaluator.targets, manifest.data.tokenizer)
    return HeldOut(step, loss, bits, evaluator.tokens, digest_of(windows), corpus.fingerprint[:DIGITS])
