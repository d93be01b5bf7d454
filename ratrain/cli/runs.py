"""Commands about existing runs: list, delete, tag, note, follow, calibrate, prune their caches."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ratrain.cli.arguments import Command, json_argument, natural, run_arguments
from ratrain.cli.printing.document import print_document, print_line
from ratrain.cli.printing.tables import aligned
from ratrain.errors import ManifestError, UnavailableError, UsageError

if TYPE_CHECKING:
    from ratrain.storage.notes import Notes


def _runs_arguments(parser: argparse.ArgumentParser) -> None:
    from ratrain.storage.listing import ORDERS

    parser.add_argument("glob", nargs="?", metavar="GLOB", help="an id or a pattern of names, e.g. 'v9-*/s1' (all)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="parent of the run folders (runs)"
    )
    parser.add_argument(
        "--sort", choices=ORDERS, default=ORDERS[0], help=f"order of the list ({ORDERS[0]}: newest first)"
    )
    json_argument(parser)


def _runs(args: argparse.Namespace) -> None:
    """List runs with progress, loss, speed, tags and note."""
    from ratrain.storage.listing import list_runs
    from ratrain.storage.listing import table as table_of_runs

    runs = list_runs(args.out, args.glob, sort=args.sort)
    if args.json:
        print_document([run.record() for run in runs])
    elif runs:
        print(table_of_runs(runs, width=shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    else:
        print(f"no runs in {args.out}" + (f" match {args.glob}" if args.glob else ""))


def _rm_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser, several=True)
    parser.add_argument("--yes", action="store_true", help="delete without asking")
    json_argument(parser)


def _rm(args: argparse.Namespace) -> None:
    """Delete runs, after asking."""
    from ratrain.storage.folder import find_run
    from ratrain.storage.listing import check_removable, remove, size

    found = {run.resolve(): run for run in (find_run(name, args.out) for name in args.run)}
    for run in found.values():  # all or none
        check_removable(run)
    if args.json and not args.yes:
        raise UsageError("--json leaves no room for the question on stdout; expected --yes beside it")
    sizes = {run: size(run) for run in found.values()}
    if not args.yes:
        for run in found.values():
            print(f"{run}  {sizes[run] / 1e6:.1f} MB")
        if not _agreed(f"delete {'this run' if len(found) == 1 else f'these {len(found)} runs'}? [y/N] "):
            print("nothing was deleted")
            return
    for run in found.values():
        remove(run)
        if not args.json:
            print(f"deleted {run}")
    if args.json:
        print_document({"deleted": [{"run": run, "bytes": sizes[run]} for run in found.values()]})


def _agreed(question: str) -> bool:
    """Whether the user at the terminal answers yes. Raises UsageError without a terminal."""
    if sys.stdin is None or not sys.stdin.isatty():  # None: it was closed
        raise UsageError("there is no terminal to ask on; --yes deletes without asking")
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _tag_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser)
    parser.add_argument("tags", nargs="+", metavar="TAG", help="a word")
    json_argument(parser)


def _tag(args: argparse.Namespace) -> None:
    """Add tags to a run."""
    from ratrain.storage.folder import find_run
    from ratrain.storage.notes import tag

    run = find_run(args.run, args.out)
    _tell_notes(run, tag(run, args.tags), args, shown="tags")


def _untag(args: argparse.Namespace) -> None:
    """Remove tags from a run."""
    from ratrain.storage.folder import find_run
    from ratrain.storage.notes import untag

    run = find_run(args.run, args.out)
    _tell_notes(run, untag(run, args.tags), args, shown="tags")


def _note_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser)
    parser.add_argument("text", nargs="+", metavar="TEXT", help="replaces the note; '' removes it")
    json_argument(parser)


def _note(args: argparse.Namespace) -> None:
    """Write the note of a run."""
    from ratrain.storage.folder import find_run
    from ratrain.storage.notes import note

    run = find_run(args.run, args.out)
    _tell_notes(run, note(run, " ".join(args.text)), args, shown="note")


def _tell_notes(run: Path, notes: Notes, args: argparse.Namespace, *, shown: Literal["tags", "note"]) -> None:
    if args.json:
        print_document({"run": run, "tags": notes.tags, "note": notes.note})
    else:
        told = ", ".join(notes.tags) if shown == "tags" else notes.note
        print(f"{run}: {told or f'no {shown}'}")


def _tail_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser)
    parser.add_argument("-n", type=natural, default=10, dest="lines", metavar="N", help="lines to show first (10)")
    parser.add_argument("-f", "--follow", action="store_true", help="print new lines until the run ends, or Ctrl-C")


def _tail(args: argparse.Namespace) -> None:
    """Show the end of a run's log; -f follows it."""
    from ratrain.storage.folder import find_run
    from ratrain.storage.listing import failure, tail

    run = find_run(args.run, args.out)
    try:
        for line in tail(run, args.lines, follow=args.follow):
            print(line, end="", flush=True)
    except KeyboardInterrupt:  # ends this command only; the run is another process
        return
    if (reason := failure(run)) is not None:
        print(f"ratrain: {reason}", file=sys.stderr)


def _shares(text: str) -> list[float]:
    try:
        shares = [float(word) for word in text.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share <= 1 for share in shares):
        raise argparse.ArgumentTypeError(f"expected fractions above 0 and up to 1 with commas between, got {text!r}")
    return shares


def _rules(text: str) -> list[str]:
    rules = text.split(",")
    if not set(rules) <= {"mass", "random", "window"}:
        raise argparse.ArgumentTypeError(f"expected some of mass,random,window, got {text!r}")
    return rules


def _prune_eval_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser)
    parser.add_argument(
        "--keep", type=_shares, default=[0.1, 0.2, 0.382, 0.6, 1.0], metavar="F,F,...", help="fractions kept"
    )
    parser.add_argument(
        "--rule",
        type=_rules,
        default=["mass", "random", "window"],
        metavar="R,R,...",
        help="rules that choose the tokens kept",
    )
    parser.add_argument(
        "--mode", choices=("v_only", "kv"), default="kv", help="prune values only, or keys as well (kv)"
    )
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:N")
    json_argument(parser)


def _prune_eval(args: argparse.Namespace) -> None:
    """Measure the loss of a trained run with pruned KV caches, without further training."""
    from ratrain.atomic import write_file
    from ratrain.report.figures import prune_figure
    from ratrain.run.prune_eval import HEAD, prune_eval, row
    from ratrain.storage.folder import find_run
    from ratrain.strict_json import strict_json

    run, rows, widths = find_run(args.run, args.out), [], (6, 6, 6, 10, 9, 8, 8, 8)
    if not args.json:
        print(aligned(HEAD, widths))
    for pruned in prune_eval(run, args.keep, args.rule, mode=args.mode, device=args.device, warn=_warn):
        rows.append(vars(pruned))
        if not args.json:
            print(aligned(row(pruned), widths), flush=True)
    if not args.json:
        print(f"on validation windows {rows[0]['windows'][:8]}")
    write_file(run / "prune-eval.json", [json.dumps(strict_json(rows), indent=1, allow_nan=False).encode()])
    figure = run / "figures" / "prune-eval.png"
    try:
        drawn = prune_figure(rows)
    except UnavailableError as error:  # the measurement took minutes; it is kept without its figure
        figure = None
        _warn(str(error))
    else:
        figure.parent.mkdir(exist_ok=True)
        write_file(figure, [drawn])
    if args.json:
        print_document({"run": run, "rows": rows, "file": run / "prune-eval.json", "figure": figure})
    else:
        print(f"\n{figure or run / 'prune-eval.json'}")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN[@STEP]", help="a run folder, an id, a prefix of its name, or @last")
    parser.add_argument("--channels", metavar="K", help="value channels kept per head: a fraction, or a count (0.5)")
    parser.add_argument("--transform", metavar="T", help="spline (default), or pca")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="e.g. patch.kv_splice.vectors=8192")
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="parent of the run folders (runs)"
    )
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:N")
    parser.add_argument("--fresh", action="store_true", help="move an earlier run of this recipe aside and start over")
    json_argument(parser, "events as JSON lines on stdout")


def _calibrate(args: argparse.Namespace) -> None:
    """Fit KV splice to a trained run: a new run with the same weights that caches values in fewer channels."""
    from ratrain.config.read import located
    from ratrain.run.calibrate import calibrate, spliced
    from ratrain.run.start import AlreadyDone, Launch
    from ratrain.sinks.jsonl import JsonStream
    from ratrain.sinks.progress import progress

    short = {"channels": args.channels, "transform": args.transform}
    keys = [f"patch.kv_splice.{name}={value}" for name, value in short.items() if value is not None]
    manifest, source, branch = spliced(args.run, args.out, [*keys, *args.set])
    launch = Launch(args.out, args.device, fresh=args.fresh, branch=branch)
    try:
        folder = calibrate(manifest, source, launch, sink=JsonStream() if args.json else progress())
    except ManifestError as error:
        raise located(error, source) from error
    except AlreadyDone as done:
        if args.json:
            print_line({"done": done.path, "loss": done.loss})
        else:
            print(f"{done}; --fresh starts it over")
        return
    if not args.json:
        print(f"everything is in {folder}; ratrain sample {folder} draws text")


COMMANDS: dict[str, Command] = {
    "runs": Command(_runs_arguments, _runs),
    "runs rm": Command(_rm_arguments, _rm),
    "runs tag": Command(_tag_arguments, _tag),
    "runs untag": Command(_tag_arguments, _untag),
    "runs note": Command(_note_arguments, _note),
    "calibrate": Command(_calibrate_arguments, _calibrate),
    "prune-eval": Command(_prune_eval_arguments, _prune_eval),
    "tail": Command(_tail_arguments, _tail),
}
