"""`ratrain try FILE`: from the manifest of an idea to a verdict."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from ratrain.cli.arguments import Command, json_argument, pool_arguments, positive
from ratrain.cli.printing.document import print_document
from ratrain.cli.studies.ablate import budget
from ratrain.errors import Exit, ManifestError, RatrainError

if TYPE_CHECKING:
    from ratrain.contracts.verify import Verdict

_UNMET = 1  # exit code of a trial whose verdict is not the required one


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ideas", nargs="+", metavar="FILE", help="manifest of an idea: path, file name or id")
    parser.add_argument(
        "--base", default="v0", metavar="B", help="manifest to compare with (v0); ideas keep the base that they extend"
    )
    parser.add_argument("--scale", default="study", metavar="S", help="overlay of sizes (study)")
    parser.add_argument(
        "--budget",
        type=budget,
        metavar="B",
        help="what the runs may spend: 15m (default), 2 gpu-h, ...; may be extended",
    )
    parser.add_argument(
        "--delta", type=positive, default=0.01, metavar="NATS", help="difference that does not matter (0.01 nats)"
    )
    parser.add_argument("--after", metavar="STUDY", help="an earlier study of the same search, whose ideas count too")
    parser.add_argument(
        "--require",
        choices=("better", "not-worse", "equivalent"),
        help="exit with 1 unless every idea is this",
    )
    json_argument(parser, "one JSON document on stdout; also if stdout is no terminal")
    pool_arguments(parser)


def _try(args: argparse.Namespace) -> int:
    """Take an idea to a verdict: contracts, controls, as many seeds as needed, costs, one page."""
    from ratrain.ablation.running.board import LineBoard, board
    from ratrain.ablation.trial import meets, outcome, sentences
    from ratrain.api import try_ideas

    plain = args.json or not sys.stdout.isatty()
    said = sys.stderr if plain else sys.stdout
    print(f"checking {', '.join(args.ideas)}: contracts, twins, initial values", file=said, flush=True)
    try:
        found = try_ideas(
            *args.ideas, base=args.base, scale=args.scale, budget=args.budget, delta=args.delta, after=args.after,
            overrides=args.set, patches=args.patches, out=args.out, device=args.device, jobs=args.jobs,
            memory=args.memory, fresh=args.fresh, accept_code_change=args.accept_code_change,
            board=partial(LineBoard, out=sys.stderr) if plain else board,
            on_contract=partial(_told, out=said),
        )  # fmt: skip
    except RatrainError as error:
        if plain:
            refused = isinstance(error, ManifestError)
            faults = [str(fault) for fault in error.faults] if isinstance(error, ManifestError) else [str(error)]
            print_document({"verdict": "refused" if refused else "error", "faults": faults})
        raise
    if plain:
        told = outcome(found.study, found.conclusion, found.page)
        if found.exit:
            told["warnings"].append(f"not over, exit code {found.exit}: the same command goes on")
        print_document(told)
    elif not found.conclusion:
        print("no verdict: it takes two seeds that are done, of the baseline and of the idea")
    else:
        print(
            "\n".join(
                ["", *sentences(found.study, found.conclusion), *map("warning: {}".format, found.conclusion.warnings)]
            )
        )
        print(found.page)
    if found.exit or not args.require:
        return found.exit
    ideas = [arm.name for arm in found.study.now.of_role("arm")]
    met = found.conclusion and all(meets(found.verdicts[name], args.require, args.delta) for name in ideas)
    return Exit.DONE if met else _UNMET


def _told(name: str, verdict: Verdict, out: Any) -> None:
    """Prints a line for each broken contract of an idea."""
    if verdict.fault is not None:
        print(f"{name}: BROKEN: {verdict.claim}", file=out, flush=True)


COMMANDS: dict[str, Command] = {"try": Command(_arguments, _try)}
