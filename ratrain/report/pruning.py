"""The section of a run's page on its pruned weights."""

from __future__ import annotations

from typing import Any

from ratrain.events import PruningEvaluated
from ratrain.storage.run_log import RunLog

_TABLE = "wte.weight"


def pruning_facts(log: RunLog) -> list[tuple[str, str]]:
    """Returns the facts on pruning as name and text; empty if the run has no pruning evaluation."""
    end = log.pruning
    if not end:
        return []
    pruned = {name: pair for name, pair in end.zeros.items() if name in end.pruned}
    rows = [
        ("target", f"{end.target:.4%} of {_sum(pruned, 1):,} weights in {len(pruned)} matrices"),
        ("zero weights, counted", _share(pruned)),
    ]
    if _TABLE not in pruned:
        rows.append(("with the token table, which is not pruned", _share(end.zeros)))
    rows += [
        (f"validation loss, {name}", _loss(loss))
        for name, loss in (
            ("best before anything was pruned", end.loss_dense_best),
            ("best at the target", end.loss_target_best),
            ("at the end", end.loss),
            ("of the file, in a model that is not pruned", end.loss_reloaded),
        )
    ]
    seconds = ", ".join(f"{1e3 * s:.4g} ms {name}" for name, s in end.step_seconds.items() if s is not None)
    rows.append(("median step", f"{seconds} (masks are made anew in some windows)"))
    dense, packed = end.bytes_dense, end.bytes_packed
    rows.append(("these tensors on disk", f"{packed:,} bytes as masks and values, {dense:,} as they are"))
    if not end.reached:
        rows.append(("warning", "the run ended before the target was reached"))
    if gone := [name for name, (zeros, n) in pruned.items() if zeros == n]:
        rows.append(("warning", f"nothing is left of {', '.join(gone)}"))
    if end.not_zero:
        rows.append(("warning", f"{end.not_zero:,} masked weights are not zero"))
    return rows


def pruned_in_short(end: PruningEvaluated) -> str:
    """Formats the zero fraction and the number of pruned matrices in one line."""
    pruned = {name: pair for name, pair in end.zeros.items() if name in end.pruned}
    return f"{_share(pruned)} in {len(pruned)} matrices"


def pruning_rows(log: RunLog) -> list[tuple[str, ...]]:
    """Returns a row per matrix: its name, its weights, its zero weights and their fraction."""
    zeros = log.pruning.zeros if log.pruning else {}
    return [(name, f"{n:,}", f"{z:,}", f"{z / n:.2%}") for name, (z, n) in zeros.items()]


def _sum(pairs: dict[str, Any], at: int) -> int:
    return sum(pair[at] for pair in pairs.values())


def _share(pairs: dict[str, Any]) -> str:
    zeros, weights = _sum(pairs, 0), _sum(pairs, 1)
    return f"{zeros:,} of {weights:,}: {zeros / weights:.4%}"


def _loss(loss: float | None) -> str:
    return "not evaluated then" if loss is None else f"{loss:.4f} nats per token"
