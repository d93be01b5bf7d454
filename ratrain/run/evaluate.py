"""Evaluates the newest weights of a run on held-out text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ratrain.config.schema import Manifest
from ratrain.data.source import open_data
from ratrain.engine.evaluate import Evaluator
from ratrain.engine.step import Precision
from ratrain.machine.device import pick_device
from ratrain.model.digests import DIGITS, digest_of
from ratrain.model.gpt2 import GPT2
from ratrain.run.sample import load_step


@dataclass(frozen=True)
class HeldOut:
    """The loss in nats per token on `tokens` targets, and in bits per byte of their text; for a recall task accuracy.

    `windows` and `corpus` are digests: only losses on the same windows can be compared.
    """

    step: int
    loss: float
    bits_per_byte: float | None
    tokens: int
    windows: str
    corpus: str
    accuracy: float | None = None


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
    """Evaluates a model, in eval mode, on validation windows of the manifest's corpus. Raises as `open_data`."""
    spec = manifest.model
    data = open_data(manifest.data, vocab_size=spec.vocab_size, block_size=spec.block_size)
    windows = data.validation(block_size=spec.block_size, count=count or manifest.eval.windows)
    precision = Precision(manifest.train.precision, model)
    evaluator = Evaluator(model, windows, precision=precision, batch=manifest.train.micro_batch)
    loss = evaluator()
    bits = data.bits_per_byte(loss, evaluator.targets)
    accuracy = None if data.is_text else evaluator.mean(evaluator.hits())
    digests = digest_of(windows.tokens), data.fingerprint[:DIGITS]
    return HeldOut(step, loss, bits, evaluator.tokens, *digests, accuracy)
