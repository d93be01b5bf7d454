"""`ratrain eval RUN`: how well does a run predict held-out text, or answer downstream tasks (`--tasks`)?"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from ratrain.cli.arguments import Command, count, json_argument, run_arguments
from ratrain.cli.printing.document import print_line
from ratrain.cli.tasks import check_together, eval_tasks, task_arguments

if TYPE_CHECKING:
    from ratrain.run.evaluate import HeldOut


def _arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser, several=True)
    parser.add_argument("--windows", type=count, metavar="N", help="validation windows (as in training)")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:N")
    json_argument(parser)
    task_arguments(parser)


def _eval(args: argparse.Namespace) -> None:
    """Evaluate the newest weights of runs on held-out text, in nats per token and bits per byte, or on downstream
    tasks."""
    check_together(args)
    if args.tasks:
        eval_tasks(args)
        return
    from ratrain.cli.printing.tables import table
    from ratrain.run.evaluate import evaluate
    from ratrain.storage.folder import find_run

    runs = {str(run): run for run in (find_run(name, args.out) for name in args.run)}
    found = {name: evaluate(run, device=args.device, warn=_warn, count=args.windows) for name, run in runs.items()}
    if args.json:
        print_line({name: asdict(held) for name, held in found.items()})
        return
    head = ("run", "step", "nats per token", "bits per byte", "right answers", "tokens", "windows")
    cells = [_cells(name, held) for name, held in found.items()]
    print(table([head, *cells]))
    if len({held.windows for held in found.values()}) > 1:
        print("the windows differ: these losses cannot be compared, bits per byte only as far as the texts are alike")


def _cells(name: str, held: HeldOut) -> tuple[str, ...]:
    bits = "-" if held.bits_per_byte is None else f"{held.bits_per_byte:.4f}"
    right = "-" if held.accuracy is None else f"{100 * held.accuracy:.2f} %"
    return name, f"{held.step:,}", f"{held.loss:.4f}", bits, right, f"{held.tokens:,}", held.windows


def _warn(message: str) -> None:
    print(f"ratrain: {message}", file=sys.stderr)


COMMANDS: dict[str, Command] = {"eval": Command(_arguments, _eval)}
