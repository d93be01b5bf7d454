"""The README of an exported model: what it is, its losses, its verdict if a study has judged it, and its recipe."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from ratrain import __version__
from ratrain.config.identity import recipe_hash
from ratrain.config.resolve import tokens_per_step
from ratrain.config.schema import Manifest
from ratrain.storage.run_log import read_run


def model_card(run: Path, manifest: Manifest, *, step: int, kind: str) -> str:
    """Returns the card, in Markdown, of the checkpoint of `step` of a run; `kind` is the class that loads it.

    A run without events, such as one that was converted, has fewer facts.
    """
    lines = [
        "---", "library_name: transformers", "tags:", "- ratrain", "---", "",
        f"# {manifest.title or manifest.id}, at the scale {manifest.scale}", "",
        f"`{manifest.id}`, trained by ratrain {__version__} up to step {step:,}. `transformers.{kind}` loads it, with "
        "the logits of the run within 1e-5 in fp32.", "",
        "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _facts(run, manifest, step)), "",
    ]  # fmt: skip
    if verdicts := list(_verdicts(run)):
        lines += ["## Verdicts", "", *(f"* {text}" for text in verdicts), ""]
    recipe = (run / "resolved.toml").read_text()
    return "\n".join([*lines, "## Recipe", "", "```toml", recipe.rstrip(), "```", ""])


def loss_at(run: Path, manifest: Manifest, step: int) -> float | None:
    """Returns the validation loss in nats per token of the weights of `step`, as the run found it.

    None if it did not evaluate them: at another step, or an average of the weights.
    """
    if manifest.eval.ema or not (run / "events.jsonl").is_file():
        return None
    return next((event.loss for event in reversed(read_run(run).evaluated) if event.step == step), None)


def _facts(run: Path, manifest: Manifest, step: int) -> Iterator[tuple[str, str]]:
    yield "tokens trained on", f"{step * tokens_per_step(manifest):,}"
    loss = loss_at(run, manifest, step)
    if loss is not None:
        yield "validation loss", f"{loss:.4f} nats per token"
    if (run / "events.jsonl").is_file():
        log = read_run(run)
        yield "parameters", f"{log.started.parameters:,}"
        if log.pruning:
            yield "weights pruned", f"{log.pruning.sparsity:.2%} of the pruned matrices"
        yield "torch", str(log.started.environment.get("torch", ""))
    yield "seeds", f"init {manifest.seed.init}, data {manifest.seed.data}"
    yield "recipe", f"`{recipe_hash(manifest)}`"


def _verdicts(run: Path) -> Iterator[str]:
    """Yields the verdict of each study beside the run's folder that this run is part of; skips what cannot be read."""
    run = run.resolve()
    name = f"{run.parent.name}/{run.name}"
    for file in sorted(run.parents[1].glob("studies/*/results.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            study = json.loads(file.read_text())
            judged = {v["arm"]: v for v in ((study["conclusion"] or {}).get("judgement") or {}).get("verdicts", ())}
            for arm in study["arms"]:
                if any(one["folder"] == name for one in arm["runs"]) and (verdict := judged.get(arm["arm"])):
                    yield f"{study['title'] or study['id']}, {arm['arm']}: {verdict['word']}; {verdict['why']}"
