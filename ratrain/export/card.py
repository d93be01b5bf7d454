"""The README of an exported model: what it is, its losses, its verdict if a study has judged it, and its recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ratrain import __version__
from ratrain.storage.run_log import RunLog, read_run


def model_card(run: Path, *, step: int, kind: str) -> str:
    """Returns the card, in Markdown, of the checkpoint of `step` of a run; `kind` is the class that loads it."""
    log = read_run(run)
    started = log.started
    lines = [
        "---", "library_name: transformers", "tags:", "- ratrain", "---", "",
        f"# {started.title or started.id}, at the scale {started.scale}", "",
        f"`{started.id}`, trained by ratrain {__version__} up to step {step:,}; {started.parameters:,} parameters. "
        f"`transformers.{kind}` loads it, with logits equal to those of the run.", "",
        "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _facts(log)), "",
    ]  # fmt: skip
    if verdicts := list(_verdicts(run)):
        lines += ["## Verdicts", "", *(f"* {text}" for text in verdicts), ""]
    recipe = (run / "resolved.toml").read_text()
    return "\n".join([*lines, "## Recipe", "", "```toml", recipe.rstrip(), "```", ""])


def _facts(log: RunLog) -> Iterator[tuple[str, str]]:
    started = log.started
    if log.windows:
        yield "tokens trained on", f"{log.windows[-1].tokens:,}"
    if log.evaluated:
        yield "validation loss", f"{log.evaluated[-1].loss:.4f} nats per token"
    if log.pruning:
        yield "weights pruned", f"{log.pruning.sparsity:.2%} of the pruned matrices"
    yield "seeds", f"init {started.seed_init}, data {started.seed_data}"
    yield "recipe", f"`{started.recipe_hash}`"
    yield "torch", str(started.environment.get("torch", ""))


def _verdicts(run: Path) -> Iterator[str]:
    """Yields the verdict of each study beside the run's folder that this run is part of."""
    name = f"{run.parent.name}/{run.name}"
    for file in sorted(run.parents[1].glob("studies/*/results.json")):
        study = json.loads(file.read_text())
        judged = {v["arm"]: v for v in ((study.get("conclusion") or {}).get("judgement") or {}).get("verdicts", ())}
        for arm in study["arms"]:
            if any(one["folder"] == name for one in arm["runs"]) and (verdict := judged.get(arm["arm"])):
                yield f"{study['title'] or study['id']}, {arm['arm']}: {verdict['word']}; {verdict['why']}"
