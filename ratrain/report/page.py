"""One self-contained HTML page of a run: no script, no network."""

from __future__ import annotations

import base64
import math
from html import escape

import tomli

from ratrain.report.figures import gate_figures, loss_figure
from ratrain.report.gates import gate_rows
from ratrain.report.log import RunLog

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid #8884; white-space: nowrap; }
table.facts td { white-space: normal; vertical-align: top; }
pre { overflow-x: auto; padding: .8rem; background: #8881; border-radius: 4px; }
.quiet { color: #808080; }
"""


def facts(log: RunLog) -> list[tuple[str, str]]:
    """What the run was and what it reached, as name and text."""
    start, windows = log.started, log.windows
    rows = [
        ("run", str(log.path)),
        ("variant", f"{start['id']}: {start['title']}"),
        ("status", log.status + (f", step {windows[-1]['step']:,}" if windows else "")),
        ("scale", f"{start['scale']}, {start['precision']} on {start['device']}"),
        ("parameters", f"{start['parameters']:,}"),
    ]
    if log.evaluated:
        loss = log.evaluated[-1][1]
        rows.append(("validation loss", f"{loss:.4f} nats per token, perplexity {math.exp(min(loss, 700)):.2f}"))
    if windows:
        rate = sorted(window["tokens_per_second"] for window in windows)[len(windows) // 2]
        mfu = [window["mfu"] for window in windows if window["mfu"] is not None]
        of_peak = f", MFU {100 * sorted(mfu)[len(mfu) // 2]:.0f} % of the measured peak" if mfu else ""
        rows.append(("speed", f"{rate:,.0f} tokens/s, the median window{of_peak}"))
        rows.append(("peak memory", f"{max(window['peak_memory'] for window in windows) / 2**20:,.0f} MiB"))
        recompiles, skipped = windows[-1]["recompiles"], sum(window["skipped"] for window in windows)
        if recompiles or skipped:
            rows.append(("warning", f"{recompiles} recompiles, {skipped} steps skipped"))
    rows += [(f"the reference: {name}", text) for name, text in _origin(log)]
    return rows


def _origin(log: RunLog) -> list[tuple[str, str]]:
    """What the manifest says that the reference ran in its place."""
    try:
        manifest = tomli.loads((log.path / "resolved.toml").read_text())
    except (OSError, ValueError):
        return []
    origin = manifest.get("origin")
    return [(name, str(text)) for name, text in origin.items()] if isinstance(origin, dict) else []


def page(log: RunLog, figures: dict[str, bytes]) -> str:
    """The report as HTML, with the `figures` of figures_of."""
    title = f"{log.started['id']} {log.path.name}"
    parts = [f"<h1>{escape(title)}</h1>", _table(facts(log))]
    if "loss" in figures:
        parts += ["<h2>Loss</h2>", _image(figures["loss"], "Training and validation loss over steps")]
    if log.probes:
        head, *rows = gate_rows(log)
        parts += ["<h2>Gates</h2>", _table(rows, head)]
        for patch in log.probes:
            words = f"Probes of {patch} by layer, head and step"
            parts += [f"<h3>{escape(patch)}</h3>", _image(figures[f"gates-{patch}"], words)]
    if log.sample:
        parts += ["<h2>Sample</h2>", f"<pre>{escape(log.sample)}</pre>"]
    manifest = log.path / "resolved.toml"
    if manifest.exists():
        parts += ["<h2>Manifest</h2>", f"<details><summary>resolved, with where each key came from</summary>"
                  f"<pre>{escape(manifest.read_text())}</pre></details>"]  # fmt: skip
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>{"".join(parts)}</body></html>\n'
    )


def figures_of(log: RunLog) -> dict[str, bytes]:
    """Every figure of the page as PNG, by name. Raises UnavailableError without matplotlib."""
    losses = {"loss": loss_figure(log)} if log.windows else {}
    return losses | {f"gates-{patch}": image for patch, image in gate_figures(log).items()}


def _table(rows: list[tuple[str, ...]] | list[tuple[str, str]], head: tuple[str, ...] = ()) -> str:
    cells = ["".join(f"<th>{escape(cell)}</th>" for cell in head)] if head else []
    cells += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table{'' if head else ' class=facts'}>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _image(png: bytes, words: str) -> str:
    return f'<p><img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'
