"""Models in the states that contracts check: as built or with shaken weights, half or fully switched on, in train mode
with and without dropout, in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ratrain.config.schema import Manifest
from ratrain.contracts.perturbation import random_tokens, shake
from ratrain.engine.assembly import assemble
from ratrain.engine.parts.fitting import fit_briefly
from ratrain.engine.step import TrainStep
from ratrain.model.build import build
from ratrain.model.gpt2 import GPT2
from ratrain.model.mechanism import own_modules


@dataclass(frozen=True)
class State:
    """A state of a model: `activation` is s of every mechanism, 0 for the base model and 1 for the full mechanism."""

    training: bool
    activation: float = 1.0
    shaken: bool = False  # noise added to every weight: none is zero, no two are equal
    dropout: float = 0.0

    def __str__(self) -> str:
        parts = ["training" if self.training else "evaluating"]
        parts += [f"dropout {self.dropout:g}"] * bool(self.dropout) + ["weights shaken"] * self.shaken
        return ", ".join(parts + [f"activation {self.activation:g}"] * (self.activation != 1))

    def of(self, manifest: Manifest) -> GPT2:
        """Returns the manifest's model in this state, in float64."""
        if self.dropout:
            spec = manifest.model.model_copy(update={"dropout": self.dropout})
            manifest = manifest.model_copy(update={"model": spec})
        model = fitted(manifest).double()
        if self.shaken:
            shake(model)
        activate(model, self.activation)
        return model.train(self.training)


# a fault may show only with non-zero gates, a half-open mechanism, or dropout; each is in one of these states
STATES = (
    State(training=True),
    State(training=False),
    State(training=True, activation=0.5, shaken=True),
    State(training=False, activation=0.5, shaken=True),
    State(training=True, shaken=True, dropout=0.1),
)


def fitted(manifest: Manifest) -> GPT2:
    """Builds the model and fits the modules that are calibrated in closed form."""
    model = build(manifest)
    return fit_briefly(model, tokens_of(manifest, 3, manifest.model.block_size))


def trained(manifest: Manifest, *, steps: int = 3) -> GPT2:
    """Returns the model after a few steps on one batch, so that buffers and gates differ from their initial values."""
    model = fitted(manifest)
    step = step_of(model, manifest)
    tokens = tokens_of(manifest, 2, 66)
    for _ in range(steps):
        step(tokens[:, :-1], tokens[:, 1:])
    return model


def step_of(model: GPT2, manifest: Manifest, *, lr: float = 1e-2, precision: str = "fp32") -> TrainStep:
    """Returns the train step of the manifest's optimizer, without pruning, for batches of two."""
    train = manifest.train.model_copy(update={"precision": precision, "micro_batch": 2})
    step = assemble(manifest.model_copy(update={"train": train, "prune": None}), model=model).step
    step.set_lr(lr)
    return step


def tokens_of(manifest: Manifest, rows: int, length: int) -> Tensor:
    return random_tokens(manifest.model.vocab_size, rows, length)


def logits_of(model: GPT2, tokens: Tensor) -> Tensor:
    """Returns logits [B, T, V] of tokens [B, T], with the same dropout mask at every call."""
    torch.manual_seed(0)
    with torch.no_grad():
        return model.logits(tokens)


def loss_of(model: GPT2, manifest: Manifest) -> Tensor:
    tokens = tokens_of(manifest, 2, 66)
    return model(tokens[:, :-1], tokens[:, 1:])


def activations(model: nn.Module) -> Iterator[Tensor]:
    """Returns the activation buffers `s`: 0 is the base model, 1 the full mechanism."""
    return (b for _, part in own_modules(model) for name, b in part.named_buffers(recurse=False) if name == "s")


def activate(model: nn.Module, value: float) -> None:
    for switch in activations(model):
        switch.fill_(value)
