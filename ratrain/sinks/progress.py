"""Shows a run to the user: a live bar on a terminal, one line per window elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from ratrain import events
from ratrain.events import Event

if TYPE_CHECKING:
    from rich.progress import TaskID


_TABLE = "wte.weight"


def describe(event: Event) -> list[str]:
    """Returns the lines that describe an event; none for events without a description."""
    teller = _TELLERS.get(type(event))
    return teller(event) if teller else []


def _started(e: events.RunStarted) -> list[str]:
    budget = ", ".join(f"{_number(v)} {k}" for k, v in e.budget.items())
    if "steps" in e.budget:
        budget = f"{e.total_steps:,} steps"
    steps = "" if e.total_steps is None or "steps" in e.budget else f" = {e.total_steps:,} steps"
    steps += f" of {e.tokens_per_step:,} tokens" if e.total_steps is not None else ""
    base = ", ".join(f"{k} {v:.3f}" for k, v in e.baselines.items())
    return [
        f"{e.id}  {e.title}" if e.title else e.id,
        f"{e.scale} scale, seed {e.seed_init}" + (f"-{e.seed_data}" if e.seed_data != e.seed_init else "")
        + f", {e.precision} on {e.device}" + (f" x {e.processes}" if e.processes > 1 else "")
        + f"; recipe {e.recipe_hash[:8]}",
        f"{_number(e.parameters)} parameters, {_number(e.flops_per_token)} FLOPs per trained token, "
        f"{_number(e.kv_bytes_per_token)} bytes of KV cache per token",
        f"budget {budget}{steps}; data {_data(e)}",
        f"for comparison, nats per {'answer' if 'guess' in e.baselines else 'token'}: {base}",
        f"folder {e.folder}",
    ]  # fmt: skip


def _data(e: events.RunStarted) -> str:
    if e.train_tokens:
        return f"{_number(e.train_tokens)} tokens, {_number(e.val_tokens)} for validation"
    return f"{e.manifest['data']['source']}, drawn anew for every step"


def _attention(e: events.AttentionChosen) -> list[str]:
    name = "torch's own choice" if e.backend == "torch" else e.backend
    how = {"asked": ", as asked", "measured": ", the fastest", "cached": ", the fastest when measured", "default": ""}
    times = ", ".join(f"{name} {1e3 * s:.3g} ms" for name, s in sorted(e.seconds.items(), key=lambda item: item[1]))
    told = f"attention by {name}{how.get(e.source, ', as recorded')}"
    return [f"{told} for {e.case}" + (f": {times}" if times else "")]


def _window(e: events.Window) -> list[str]:
    line = (
        f"step {e.step:6d}  {100 * e.spent:5.1f} %  loss {_mean(e.losses):.4f}  lr {e.lr:.2e}  "
        f"norm {_mean(e.grad_norms):.2f}  {_number(e.tokens_per_second)} tok/s"
    )
    line += f"  sparsity {100 * e.sparsity:.1f} %" if e.sparsity else ""
    line += "" if e.mfu is None else f"  MFU {100 * e.mfu:.0f} %"
    line += "" if e.eta is None else f"  ETA {_duration(e.eta)}"
    warnings = [f"warning: {e.skipped} step(s) skipped: the gradient was not finite"] if e.skipped else []
    warnings += [f"warning: {e.recompiles} recompile(s) so far"] if e.recompiles else []
    return [line, *warnings]


def _phase(e: events.PhaseStarted) -> list[str]:
    if e.phase != "compile":
        return []
    wait = " (up to a minute the first time, then kept)" if e.note.startswith("inductor") else ""
    return [f"compiling with {e.note}{wait}"]


def _fitted(e: events.Fitted) -> list[str]:
    plain = [] if e.heads_as_pca == e.heads else [f"{e.error_of_pca:.3%} by plain PCA"]
    if 0 < e.heads_as_pca < e.heads:
        plain.append(f"which {e.heads_as_pca} of {e.heads} heads fall back to")
    values = [] if e.objective == "value" else [f"{e.error_of_values:.3%} of the values'"]
    what = ", ".join([f"loses {e.error:.3%} of the held-out {e.objective}'s variance", *plain, *values])
    return [f"step {e.step:6d}  {e.patch} is fitted to {e.vectors} vectors per head: {what}"]


def _pruning(e: events.PruningBegan) -> list[str]:
    table = "the token table among them" if _TABLE in e.tensors else "not the token table"
    weights = f"{e.weights:,} weights of {e.of_parameters:,} parameters"
    return [f"prunes by {e.kind} from {len(e.tensors)} matrices, {table}: {weights}"]


def _pruning_evaluated(e: events.PruningEvaluated) -> list[str]:
    zeros, weights = (sum(pair[at] for name, pair in e.zeros.items() if name in e.pruned) for at in (0, 1))
    share = f"{zeros / weights:.4%}, target {e.target:.4%}"
    if _TABLE not in e.pruned:
        share += f"; {zeros / (weights + e.zeros[_TABLE][1]):.2%} with the token table"
    losses = {"dense": e.loss_dense_best, "at the target": e.loss_target_best}
    best = "".join(f", best {name} {loss:.4f}" for name, loss in losses.items() if loss is not None)
    disk = "the same from disk" if e.loss_reloaded == e.loss else f"but {e.loss_reloaded:.4f} from disk"
    lines = [
        f"pruned: {zeros:,} of {weights:,} weights are zero ({share})",
        f"pruned: validation loss {e.loss:.4f}, {disk}{best}",
    ]
    if not e.reached:
        lines.append("warning: the run ended before the target was reached; an earlier prune.end would leave time")
    if gone := [name for name in e.pruned if e.zeros[name][0] == e.zeros[name][1]]:
        lines.append(
            f"warning: nothing is left of {', '.join(gone)}; prune.layers = 'uniform' would leave some of each"
        )
    return lines + ([f"warning: {e.not_zero:,} masked weights are not zero"] if e.not_zero else [])


def _optimizer(e: events.OptimizerTold) -> list[str]:
    counts = ", ".join(f"{count:,} {name} ({e.totals[name]:,} in all)" for name, count in e.counts.items())
    return [f"step {e.step:6d}  the optimizer counts {counts}"]


def _fingerprints(e: events.Fingerprints) -> list[str]:
    """Tells how much of the validation text is training text; recall tasks have no text."""
    if not e.overlap:
        return []
    shares = f"{e.overlap['found']:,} of {e.overlap['ngrams']:,} runs of 16 words"
    documents = f"{e.overlap['repeated']:,} of {e.overlap['documents']:,} documents"
    return [f"validation text that is also training text: {e.overlap['share']:.2%} ({shares}, {documents})"]


def _evaluated(e: events.Evaluated) -> list[str]:
    bits = "" if e.bits_per_byte is None else f", {e.bits_per_byte:.4f} bits per byte"
    right = "" if e.accuracy is None else f", {100 * e.accuracy:.2f} % of the answers right"
    windows = f"windows {e.windows[:8]}, " if e.windows else ""
    return [f"step {e.step:6d}  validation loss {e.loss:.4f}{bits}{right}  ({windows}{e.seconds:.1f} s)"]


def _compiled(e: events.Compiled) -> list[str]:
    return [f"compiled {e.graphs} graphs to {e.what} in {e.seconds:.1f} s" + (", from the cache" if e.cached else "")]


def _ended(e: events.RunEnded) -> list[str]:
    seconds = ", ".join(f"{phase} {_duration(s)}" for phase, s in e.seconds.items())
    windows = f" on windows {e.windows[:8]}" if e.windows else ""
    loss = "" if e.loss is None else f", validation loss {e.loss:.4f}{windows}"
    return [f"{e.status} at step {e.step}{loss} ({seconds})"]


_TELLERS: dict[type, Callable[..., list[str]]] = {
    events.RunStarted: _started,
    events.Fingerprints: _fingerprints,
    events.AttentionChosen: _attention,
    events.Resumed: lambda e: [*(f"warning: {f}" for f in e.skipped), f"resumed at step {e.step} from {e.checkpoint}"],
    events.Activated: lambda e: [f"step {e.step:6d}  {e.patch} is switched on" + (f", s {e.s:.3g}" if e.s < 1 else "")],
    events.Branched: lambda e: [f"begins at step {e.step} of {e.run}"],
    events.Pretrained: lambda e: [
        f"begins with the {e.tensors} tensors of {e.weights} (sha256 {e.sha256[:8]}, {e.repack})",
        *(f"note: {note}" for note in e.notes),
    ],
    events.PhaseStarted: _phase,
    events.Compiled: _compiled,
    events.Window: _window,
    events.Evaluated: _evaluated,
    events.Fitted: _fitted,
    events.PruningBegan: _pruning,
    events.Pruned: lambda e: [f"step {e.step:6d}  {e.sparsity:.4%} is pruned, the target"] if e.reached else [],
    events.PruningEvaluated: _pruning_evaluated,
    events.OptimizerTold: _optimizer,
    events.Saved: lambda e: [
        f"step {e.step:6d}  saved {os.path.basename(e.path)} ({_number(e.bytes)}B, {e.seconds:.2f} s)"
    ],
    events.Sampled: lambda e: ["sample:", *(f"  | {line}" for line in e.text.strip().splitlines())],
    events.Notice: lambda e: [e.message if e.level == "info" else f"{e.level}: {e.message}"],
    events.RunEnded: _ended,
}


class Lines:
    """Prints every event as lines to a stream: for pipes, and for log.txt."""

    def __init__(self, stream: TextIO, *, stamped: bool = False):
        self._stream, self._stamped = stream, stamped

    def __call__(self, event: Event) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime()) if self._stamped else ""
        for line in describe(event):
            print(stamp + line, file=self._stream, flush=True)


class Bar:
    """A live line on a terminal: phase, bar, loss, tokens/s, ETA; other events scroll above it."""

    def __init__(self):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = Console(highlight=False)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._loss = ""  # of the last window, shown beside the validation loss

    def __call__(self, event: Event) -> None:
        if isinstance(event, events.PhaseStarted):
            # the duration of a compile is unknown, so the bar pulses
            self._update(description=event.phase, total=None if event.phase == "compile" else 1.0)
        elif isinstance(event, events.Window):
            eta = "" if event.eta is None else f"  ETA {_duration(event.eta)}"
            status = f"step {event.step}  loss {_mean(event.losses):.3f}  {_number(event.tokens_per_second)} tok/s{eta}"
            self._loss = f"  training loss {_mean(event.losses):.4f}"
            self._update(description="train", total=1.0, completed=event.spent, status=status)
        elif isinstance(event, events.RunEnded):
            self.close()
        lines = describe(event)[1:] if isinstance(event, events.Window) else describe(event)
        for line in lines:
            line += self._loss if isinstance(event, events.Evaluated) else ""
            self._console.print(line, markup=False, style=self._style(event, line))
        if isinstance(event, (events.Evaluated, events.Saved, events.Compiled, events.Fitted)):
            self._update(description="train")

    @staticmethod
    def _style(event: Event, line: str) -> str | None:
        if line.startswith("warning"):
            return "yellow"
        if isinstance(event, events.Evaluated):
            return "green"
        return "dim" if isinstance(event, (events.Saved, events.Sampled)) else None

    def _update(self, **fields) -> None:
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0, status="")
        self._bar.update(self._task, **fields)

    def close(self) -> None:
        self._bar.stop()


def progress(stream: TextIO | None = None) -> Bar | Lines:
    """Returns a Bar if the output (default: stdout) is a terminal and neither TERM=dumb nor CI=true, else Lines."""
    out: TextIO = stream or sys.stdout
    plain = os.environ.get("TERM") == "dumb" or os.environ.get("CI") == "true"
    return Bar() if out.isatty() and not plain else Lines(out)


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def _number(value: float) -> str:
    """Formats a number with three digits and a unit: 1234567 -> 1.23M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
