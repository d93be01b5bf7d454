"""Comparison of several runs: results, loss curves, and differences of configuration and environment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ratrain.errors import UnavailableError
from ratrain.report.curves import Curve, Kind, curve_of
from ratrain.report.html import render
from ratrain.report.study.figures import curves_figure
from ratrain.storage.run_log import RunLog

NONE = "-"
_NAMES = ("id", "title", "same_as", "origin", "seed")  # keys that identify a run and do not change its computation


def compare_rows(logs: Sequence[RunLog]) -> list[tuple[str, ...]]:
    """Returns a head line and a line per run: name, status, progress, losses and costs."""
    recalls = any(log.evaluated and log.evaluated[-1].accuracy is not None for log in logs)
    told = ("bits/byte", "right") if recalls else ("bits/byte",)
    head = ("run", "scale", "status", "step", "tokens", "val loss", "vs first", *told, "windows", "train loss")
    rows: list[tuple[str, ...]] = [(*head, "parameters", "FLOPs/token", "KV bytes/token", "peak MiB")]
    first = _last(logs[0]) if logs else None
    for name, log in named(logs).items():
        loss, start, window = _last(log), log.started, log.windows[-1] if log.windows else None
        alike = log is not logs[0] and not on_other_windows(logs[0], log)
        less = f"{loss - first:+.4f}" if alike and loss is not None and first is not None else NONE
        costs = (f"{cost:,.0f}" for cost in (start.parameters, start.flops_per_token, start.kv_bytes_per_token))
        peak = f"{peak_memory(log) / 2**20:,.0f}" if window else NONE
        went = (f"{window.step:,}", f"{window.tokens:,}") if window else (NONE, NONE)
        reached = NONE if loss is None else f"{loss:.4f}"
        trained = f"{window.losses[-1]:.4f}" if window and window.losses else NONE
        measured = (reached, less, *_told(log)[: len(told)], windows_of(log)[:8] or NONE)
        rows.append((name, start.scale, log.status, *went, *measured, trained, *costs, peak))
    return rows


def _told(log: RunLog) -> tuple[str, str]:
    """Returns bits per byte and the accuracy of the last evaluation."""
    last = log.evaluated[-1] if log.evaluated else None
    bits, accuracy = (None, None) if last is None else (last.bits_per_byte, last.accuracy)
    return NONE if bits is None else f"{bits:.4f}", NONE if accuracy is None else f"{100 * accuracy:.2f} %"


def windows_of(log: RunLog) -> str:
    """Returns the digest of the run's validation windows; empty if its events lack it."""
    return log.fingerprints.windows if log.fingerprints else ""


def on_other_windows(a: RunLog, b: RunLog) -> bool:
    """Whether both runs state their validation windows, and these differ: their losses cannot be compared."""
    return bool(windows_of(a) and windows_of(b)) and windows_of(a) != windows_of(b)


def not_compared(logs: Sequence[RunLog]) -> str:
    """Returns a warning that names the runs evaluated on other windows than the first; empty if there is none."""
    names = named(logs)
    others = [name for name, log in names.items() if on_other_windows(logs[0], log)]
    first = next(iter(names), "")
    return f"other validation windows than {first}, so not compared with it: {_few(others)}" if others else ""


def compare_page(logs: Sequence[RunLog]) -> str:
    """Builds one self-contained page of the runs, without verdicts: these need a study with seeds and a plan."""
    names = named(logs)
    head, *rows = compare_rows(logs)
    about = [(name, log.started.title, log.started.recipe_hash[:12], str(log.path)) for name, log in names.items()]
    return render(
        "comparison.html.jinja",
        title=f"{len(logs)} runs: {', '.join(dict.fromkeys(log.started.id for log in logs))}",
        head=head,
        rows=rows,
        warning=not_compared(logs),
        about=about,
        curves=_curves(names),
        configuration=configuration_of(names),
        environment=environment_of(names),
    )


def named(logs: Sequence[RunLog]) -> dict[str, RunLog]:
    """Names each run by the shortest unambiguous end of its path, two parts or more."""
    for parts in range(2, max((len(log.path.parts) for log in logs), default=0) + 1):
        names = ["/".join(log.path.parts[-parts:]) for log in logs]
        if len(set(names)) == len(names):
            return dict(zip(names, logs, strict=True))
    return {f"{log.path} ({at})": log for at, log in enumerate(logs, start=1)}  # a run was given twice


def peak_memory(log: RunLog) -> int:
    """Returns the peak memory in bytes: device memory on a GPU, the resident set on a CPU."""
    return max((window.peak_memory for window in log.windows), default=0)


def _last(log: RunLog) -> float | None:
    return log.evaluated[-1].loss if log.evaluated else None


def _curves(names: Mapping[str, RunLog]) -> dict[Kind, str] | None:
    """Draws both losses over steps; None without matplotlib."""
    found: dict[Kind, str] = {}
    kinds: tuple[Kind, ...] = "validation", "training"
    for kind in kinds:
        curves = {name: curve for name, log in names.items() if (curve := curve_of([log], kind)) is not None}
        if kind == "validation" and max((len(curve.steps) for curve in curves.values()), default=0) < 2:
            continue  # one point per run; the table holds it
        try:
            found[kind] = _overlaid(kind, curves)
        except UnavailableError:
            return None
    return found if any(found.values()) else {}


def _overlaid(kind: str, curves: Mapping[str, Curve]) -> str:
    words = f"{kind} loss over steps of {', '.join(curves)}"
    return curves_figure(kind, words, curves, base=next(iter(curves), ""), label=f"{kind} loss")


# -- setup of runs ------------------------------------------------------------------------------------------------


def settings(log: RunLog) -> dict[str, str]:
    """Returns every key of the run's manifest by its dotted name, with its value as JSON; empty if no manifest is on
    record. Keys that only identify the run are left out."""
    manifest = {key: value for key, value in log.started.manifest.items() if key not in _NAMES}
    return {key: json.dumps(value) for key, value in _flat(manifest, "")}


def _flat(tree: Any, name: str) -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(name, tree)]
    return [pair for key, part in tree.items() for pair in _flat(part, f"{name}.{key}" if name else key)]


class Configuration(NamedTuple):
    """The keys that differ between runs, each with a value per run; `silent` runs have no manifest on record."""

    runs: list[str]
    rows: list[tuple[str, ...]]
    silent: list[str]


def configuration_of(names: Mapping[str, RunLog]) -> Configuration:
    """Compares the manifests of runs."""
    told = {name: settings(log) for name, log in names.items()}
    keys = dict.fromkeys(key for of in told.values() for key in of)
    unlike = [key for key in keys if len({of.get(key, "") for of in told.values() if of}) > 1]
    rows = [(key, *(of.get(key, NONE) for of in told.values())) for key in unlike]
    return Configuration([*told], rows, [name for name, of in told.items() if not of])


class Environment(NamedTuple):
    """The facts of environments: those common to all runs, with their value, and each value of the differing ones,
    with its runs."""

    shared: list[tuple[str, str]]
    apart: list[tuple[str, str, str]]


def environment_of(names: Mapping[str, RunLog]) -> Environment:
    """Compares the environments of runs."""
    told = {name: dict(_flat(log.started.environment, "")) for name, log in names.items()}
    for name, log in names.items():
        told[name] |= {"on": log.started.device, "precision": log.started.precision, "attention": log.attention}
        known = {key: str(value) for key, value in told[name].items() if key and value not in ("", None, {})}
        # cache folders do not affect results, and a shared page must not reveal local paths
        told[name] = {key: value for key, value in known.items() if not key.endswith("_DIR")}
    keys = dict.fromkeys(key for of in told.values() for key in of)
    shared, apart = [], []
    for key in keys:
        values: dict[str, list[str]] = {}
        for name, of in told.items():
            values.setdefault(of.get(key, "not stated"), []).append(name)
        if len(values) == 1:
            shared.append((key, next(iter(values))))
        apart += [(key, value, _few(who)) for value, who in values.items() if len(values) > 1]
    return Environment(shared, apart)


def _few(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 6} more" if len(names) > 7 else ""
    return ", ".join(names if not rest else names[:6]) + rest
