"""`ratrain --ladder FILE`: runs a study at every rung and prints the trend of each arm's gain."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

from ratrain.cli.arguments import Command, count, json_argument, pool_arguments, positive
from ratrain.cli.printing.document import print_document
from ratrain.cli.printing.tables import table
from ratrain.cli.studies.ablate import (
    carry_out_plan,
    check_together,
    command_of,
    costs_of,
    emit,
    estimated,
    other_machines,
    run_study,
    study_arguments,
    time_text,
)
from ratrain.errors import Exit, UsageError

if TYPE_CHECKING:
    from ratrain.ablation.estimate import Estimate
    from ratrain.ablation.ladder.plan import LadderPlan, Rung


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a ladder manifest: a path, or the name of a shipped one")
    parser.add_argument("--rung", type=count, metavar="K", help="the study of rung K alone, from 1")
    parser.add_argument(
        "--at", type=positive, action="append", default=[], metavar="FLOPS",
        help="predict every gain at this training compute too, up to ten times the last rung's",
    )  # fmt: skip
    study_arguments(parser)
    parser.set_defaults(amend=False, scale=None, budget=None)
    json_argument(parser, "the conclusion, or the plan of --dry-run, as one JSON document on stdout")
    pool_arguments(parser)
    other_machines(parser)


def _ladder(args: argparse.Namespace) -> int:
    """Train the arms of a ladder at several scales, and say whether each gain grows, holds, shrinks or vanishes."""
    from ratrain.ablation.ladder.manifest import find_ladder
    from ratrain.ablation.ladder.plan import make_ladder
    from ratrain.ablation.ladder.record import settle_ladder

    check_together(args)
    if args.run and not args.rung:
        raise UsageError("--run: expected --rung K beside it, the rung that the run belongs to")
    if args.fresh and (args.rung or args.emit):
        raise UsageError("--fresh moves the whole ladder aside; expected neither --rung nor --emit beside it")
    plan = make_ladder(
        find_ladder(args.file), overrides=args.set, seeds=args.seeds, only=args.only, patches=args.patches,
        costs=partial(costs_of, args),
    )  # fmt: skip
    words = ["ratrain", "--ladder", args.file]
    plan = replace(plan, command=command_of(words, args))
    commands = [command_of([*words, "--rung", str(rung.number)], args) for rung in plan.rungs]
    told = [replace(r, plan=replace(r.plan, command=c)) for r, c in zip(plan.rungs, commands, strict=True)]
    plan = replace(plan, rungs=tuple(told))
    _check_predictions(plan, args)
    if args.rung and args.rung > len(plan.rungs):
        raise UsageError(f"--rung {args.rung}: the ladder has rungs 1 to {len(plan.rungs)}")
    if (args.rung or args.emit) and not args.dry_run:
        settle_ladder(plan, args.out)
    if args.rung:
        return carry_out_plan(plan.rungs[args.rung - 1].plan, _without_costs(args, only=args.rung < len(plan.rungs)))
    if args.dry_run:
        _print_plan(plan, [estimated(rung.plan, args) for rung in plan.rungs], args)
        return Exit.DONE
    if args.emit:
        return max(emit(rung.plan, _without_costs(args, only=rung is not plan.rungs[-1])) for rung in plan.rungs)
    return _run(plan, args)


def _check_predictions(plan: LadderPlan, args: argparse.Namespace) -> None:
    """Raises UsageError for a compute that is not predicted, and for options that do not conclude."""
    from ratrain.ablation.ladder.conclusion import FARTHEST

    first, last = plan.rungs[0].flops, plan.rungs[-1].flops
    for flops in args.at:
        if not first <= flops <= FARTHEST * last:
            reach = f"from the first rung's {first:.3g} to {FARTHEST:g} x the last one's {last:.3g}"
            raise UsageError(f"--at {flops:g}: gains are predicted {reach} FLOPs")
    if args.at and (args.rung or args.emit or args.dry_run or args.json):
        raise UsageError(
            "--at adds a table to the conclusion; expected no --rung, --emit, --dry-run or --json beside it"
        )


def _run(plan: LadderPlan, args: argparse.Namespace) -> int:
    from ratrain.api import ladder
    from ratrain.cli.printing.ladder_text import ladder_lines

    def run(rung: Rung):
        last = rung is plan.rungs[-1]
        if not args.json:
            print(f"\nrung {rung.number} of {len(plan.rungs)}: {rung.parameters:,} parameters, {rung.tokens:,} tokens")
        return run_study(rung.plan, _without_costs(args, only=not last))

    found = ladder(plan, out=args.out, fresh=args.fresh, run=run)
    if args.json:
        print((found.path / "ladder.json").read_text())
    else:
        print("\n".join(["", *ladder_lines(found.climbed, at=args.at), str(found.page)]))
    return found.exit


def _without_costs(args: argparse.Namespace, *, only: bool) -> argparse.Namespace:
    """Returns the options of a rung; step costs are measured at the last one alone."""
    return argparse.Namespace(**{**vars(args), "no_costs": args.no_costs or only})


def _print_plan(plan: LadderPlan, needs: list[Estimate], args: argparse.Namespace) -> None:
    from ratrain.ablation.ladder.record import planned_ladder
    from ratrain.ablation.preflight import preflight
    from ratrain.report.ladder.table import rates_text

    made, checked = planned_ladder(plan), preflight(plan.rungs[0].plan)  # all rungs have the same arms
    if args.json:
        facts = {"needs": [asdict(need) for need in needs], "checked": checked}
        print_document({**json.loads(json.dumps(asdict(made))), **facts})
        return
    head = ("rung", "layers", "channels", "parameters", "tokens", "FLOPs", "arms", "seeds", "runs left", "about")
    rows = [head, *(_row(rung, need) for rung, need in zip(plan.rungs, needs, strict=True))]
    print(table(rows))
    total = time_text(sum(need.seconds for need in needs))
    print(
        f"\n{plan.ladder.id}, plan {made.hash[:8]}: learning rates {rates_text(made)}; "
        f"about {total} in all, {needs[0].lanes} at a time; nothing was written\n"
        f"each rung alone: {shlex.join(['ratrain', '--ladder', args.file])} --rung K --dry-run"
    )
    print("\n".join(["", "checked:", *(f"  {check}" for check in checked)]))


def _row(rung: Rung, need: Estimate) -> tuple[str, ...]:
    spec, plan = rung.spec, rung.plan
    seeds = plan.study.seed
    counted = f"{seeds.min} to {seeds.max}" if seeds.as_needed else str(len(plan.seeds))
    return (
        str(rung.number), str(spec.n_layer), str(spec.n_embd), f"{rung.parameters:,}", f"{rung.tokens:,}",
        f"{rung.flops:.2e}", str(len(plan.of_role("arm", "control"))), counted, str(need.runs),
        time_text(need.seconds) if need.runs else "done",
    )  # fmt: skip


COMMANDS: dict[str, Command] = {"--ladder": Command(_arguments, _ladder)}
