"""Measures the validation loss of a trained model when its KV cache is pruned, without further training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ratrain.config.schema import Manifest
from ratrain.data.sampling import Windows
from ratrain.data.source import open_data
from ratrain.engine.evaluate import Evaluator
from ratrain.engine.step import Precision
from ratrain.machine.device import pick_device
from ratrain.model.build import build
from ratrain.model.count import count
from ratrain.model.digests import digest_of
from ratrain.model.gpt2 import GPT2
from ratrain.registry import patch_kinds
from ratrain.run.sample import load_run

_KIND = "kv_prune"
_SINKS = 0.03125  # fraction of the context, at most a quarter of `keep`: 4 of 128
_RECENCY = 0.0625  # fraction of the context, at most a quarter of `keep`


@dataclass(frozen=True)
class Pruned:
    """Validation loss in nats per token, and the cache's bytes per token of a full context.

    `accuracy` is the share of right answers of a recall task, None for text; `windows` a digest of the validation rows.
    """

    rule: str  # "dense": no pruning
    mode: str
    keep: float
    loss: float
    above_dense: float
    key_bytes: int
    value_bytes: int
    windows: str
    accuracy: float | None = None


def prune_eval(
    run: Path, keeps: Sequence[float], rules: Sequence[str], *, mode: str, device: str, warn: Callable[[str], None]
) -> Iterator[Pruned]:
    """Evaluates the run's newest weights with dense attention, then with each rule and fraction; yields the results.

    The run's own cache pruning is left out.
    """
    manifest, trained = load_run(run, device=pick_device(device), warn=warn)
    others = {name: patch for name, patch in manifest.patch.items() if type(patch).kind != _KIND}
    spec, dense = manifest.model, _with(manifest, others, trained)
    data = open_data(manifest.data, vocab_size=spec.vocab_size, block_size=spec.block_size)
    windows = data.validation(block_size=spec.block_size, count=manifest.eval.windows)
    measure, digest = partial(_measured, manifest, windows, is_text=data.is_text), digest_of(windows.tokens)
    loss, accuracy = measure(dense)
    yield _row("dense", "-", 1.0, loss, loss, dense, manifest, digest, accuracy)
    for rule in rules:
        for keep in keeps:
            options = {"mode": mode, "rule": rule, "keep": keep, "recency": min(_RECENCY, keep / 4)}
            if rule == "window":  # as in StreamingLLM: without the first tokens a window is no competitive baseline
                options["sinks"] = min(_SINKS, keep / 4)
            patches = {**others, _KIND: patch_kinds()[_KIND].model_validate(options)}
            pruned = _with(manifest, patches, trained)
            own, accuracy = measure(pruned)
            yield _row(rule, mode, keep, own, loss, pruned, manifest, digest, accuracy)


def _with(manifest: Manifest, patches: dict[str, Any], trained: GPT2) -> GPT2:
    """Returns the model with these patches and the trained weights; tensors of pruning keep their initial values."""
    model = build(manifest.model_copy(update={"patch": patches}), device=trained.wte.weight.device)
    own, known = model.state_dict(), trained.state_dict()
    model.load_state_dict({name: known.get(name, tensor) for name, tensor in own.items()})
    for site, name in model.claimed.items():
        if type(patches[name]).kind == _KIND:
            model.get_submodule(site).get_buffer("s").fill_(1.0)
    return model.eval()


@torch.no_grad()
def _measured(manifest: Manifest, windows: Windows, model: GPT2, *, is_text: bool) -> tuple[float, float | None]:
    """Returns the loss, and the accuracy of a recall task."""
    precision = Precision(manifest.train.precision, model)
    evaluator = Evaluator(model, windows, precision=precision, batch=manifest.train.micro_batch)
    return evaluator(), None if is_text else evaluator.mean(evaluator.hits())


def _row(
    rule: str, mode: str, keep: float, loss: float, dense: float, model: GPT2, manifest: Manifest, windows: str,
    accuracy: float | None,
) -> Pruned:  # fmt: skip
    cost, size = count(model), 4 if manifest.train.precision == "fp32" else 2
    bytes_ = size * cost.key_elements_per_token, size * cost.value_elements_per_token
    return Pruned(rule, mode, keep, loss, loss - dense, *bytes_, windows, accuracy)


HEAD = ("rule", "mode", "keep", "loss", "- dense", "K bytes", "V bytes", "right")


def row(pruned: Pruned) -> tuple[str, ...]:
    """Returns the cells of one line under HEAD."""
    numbers = (f"{pruned.keep:g}", f"{pruned.loss:.4f}", f"{pruned.above_dense:+.4f}")
    right = "-" if pruned.accuracy is None else f"{100 * pruned.accuracy:.1f} %"
    return pruned.rule, pruned.mode, *numbers, f"{pruned.key_bytes:,}", f"{pruned.value_bytes:,}", right
