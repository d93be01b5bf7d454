"""`ratrain --ablate FILE`: runs a study and prints its verdicts."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ratrain.cli.arguments import Command, count, json_argument, natural, pool_arguments
from ratrain.cli.printing.document import print_document, print_line
from ratrain.cli.printing.tables import table
from ratrain.errors import Exit, UsageError

if TYPE_CHECKING:
    from ratrain.ablation.arms import Task
    from ratrain.ablation.estimate import Estimate
    from ratrain.ablation.manifest import Seeds
    from ratrain.ablation.plan import Plan
    from ratrain.api import StudyRun


def _seeds(text: str) -> list[tuple[int, int]] | Seeds:
    if match := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        from ratrain.ablation.manifest import Seeds

        try:
            return Seeds(min=int(match[1]), max=int(match[2]))
        except ValueError:
            message = f"expected the seeds before the first look, 3 or more, and the most, up to 1000, got {text!r}"
            raise argparse.ArgumentTypeError(message) from None
    seeds = [natural(word) for word in text.split(",")]
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"a seed is repeated in {text!r}")
    return [(seed, seed) for seed in seeds]


def budget(text: str) -> str:
    from ratrain.ablation.budget import StudyBudget

    try:
        StudyBudget.of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _ablate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="an ablation manifest: a path, or the name of a shipped one")
    parser.add_argument("--scale", metavar="S", help="overlay of sizes for every arm, in place of the manifest's")
    parser.add_argument(
        "--budget",
        type=budget,
        metavar="B",
        help="with seeds as needed: 30m, 2h, 4 gpu-h or 40 Mtokens; extensible",
    )
    parser.add_argument("--amend", action="store_true", help="add arms or seeds to a study's plan, as exploratory")
    study_arguments(parser)
    json_argument(parser, "the results, or the plan of --dry-run, as one JSON document on stdout")
    pool_arguments(parser)
    other_machines(parser)


def study_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that a study and a ladder have in common."""
    parser.add_argument(
        "--seeds", type=_seeds, metavar="N,N,...", help="seeds in place of the manifest's; 3..40: as many as needed"
    )
    parser.add_argument(
        "--only", type=_words, default=[], metavar="A,A,...", help="only these arms, by name or pattern"
    )
    parser.add_argument("--no-costs", action="store_true", help="do not measure the cost of a step of each arm")
    parser.add_argument("--dry-run", action="store_true", help="check the arms, print the plan and run nothing")


def other_machines(parser: argparse.ArgumentParser) -> None:
    """Adds the options for runs on other machines."""
    other = parser.add_argument_group("other machines (docs/scale.md)")
    other.add_argument("--run", type=count, metavar="K", help="train run K of the plan alone, from 1")
    other.add_argument("--emit", choices=("slurm", "shell"), help="write the next runs as jobs, else the report")
    other.add_argument("--next-round", action="store_true", help=argparse.SUPPRESS)  # a job asks for it
    other.add_argument(
        "--gpus-per-run", type=count, default=0, metavar="N", help="GPUs (cpu: cores) of a run, a process for each"
    )
    other.add_argument("--per-gpu", type=count, default=1, metavar="K", help="emit: runs side by side in a job")
    other.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="emit: of every job, as --sbatch=--time=2:00:00"
    )
    other.add_argument("--pool", choices=("ray",), help="run the runs as tasks of a Ray cluster")
    other.add_argument("--address", metavar="A", help="of the cluster: auto, HOST:6379 (default: a new one here)")


def _ablate(args: argparse.Namespace) -> int:
    """Train every arm of an ablation manifest with every seed, and compare them with the baseline."""
    from ratrain.ablation.manifest import find_ablation
    from ratrain.ablation.plan import make_plan

    check_together(args)
    plan = make_plan(
        find_ablation(args.file), scale=args.scale, overrides=args.set, seeds=args.seeds, budget=args.budget,
        only=args.only, patches=args.patches, costs=partial(costs_of, args),
    )  # fmt: skip
    return carry_out_plan(replace(plan, command=_command(args)), args)


def carry_out_plan(plan: Plan, args: argparse.Namespace) -> int:
    """Prints, emits or runs a study, as the options say, or one run of it."""
    if args.dry_run:
        from ratrain.ablation.preflight import preflight
        from ratrain.ablation.running.guarding import Guards

        checked = [*preflight(plan), *(f"guard: {task}" for task in Guards(plan).described())]
        _print_plan(plan, estimated(plan, args), checked, args)
        return Exit.DONE
    if args.run:
        return _run_one(plan, args)
    if args.emit:
        return emit(plan, args)
    return _told(run_study(plan, args), args)


def run_study(plan: Plan, args: argparse.Namespace, **elsewhere: Any) -> StudyRun:
    """Runs a study here or on a Ray cluster, with a board of its runs."""
    from ratrain.ablation.running.board import LineBoard, board
    from ratrain.api import study

    if args.pool and not elsewhere:
        elsewhere = _ray(args)
    return study(
        plan, out=args.out, device=args.device, jobs=args.jobs, memory=args.memory, fresh=args.fresh, amend=args.amend,
        accept_code_change=args.accept_code_change, costs=not args.no_costs,
        board=partial(LineBoard, out=sys.stderr) if args.json else board, **elsewhere,
    )  # fmt: skip


def _told(found: StudyRun, args: argparse.Namespace) -> int:
    from ratrain.cli.printing.study_text import study_lines

    if args.json:
        print((found.path / "results.json").read_text())
    else:
        print("\n".join(["", *study_lines(found.study, found.rows, found.conclusion), str(found.page)]))
    return found.exit


def check_together(args: argparse.Namespace) -> None:
    """Raises UsageError for options of other machines that do not go together, UnavailableError without Ray."""
    modes = [word for word, given in (("--run", args.run), ("--emit", args.emit), ("--pool", args.pool)) if given]
    if len(modes) > 1:
        raise UsageError(f"{' and '.join(modes)}: expected one of them")
    alone = ("--fresh", args.fresh), ("--amend", args.amend), ("--only", args.only), ("--json", args.json)
    if args.run and (given := [word for word, value in alone if value]):
        raise UsageError(f"--run trains one run of a plan on record; expected no {given[0]}")
    belongs = {
        "--per-gpu": ("--emit", args.per_gpu > 1), "--sbatch": ("--emit", args.sbatch),
        "--address": ("--pool", args.address), "--gpus-per-run": ("--run or --emit or --pool", args.gpus_per_run),
    }  # fmt: skip
    for word, (mode, given) in belongs.items():
        if given and not any(one in mode for one in modes):
            raise UsageError(f"{word}: expected {mode} beside it")
    if args.pool and args.gpus_per_run > 1:
        raise UsageError("--pool ray: a run takes one GPU; expected --gpus-per-run 1, or --emit slurm")
    if args.pool:  # now, since the checks of a plan take a minute
        from ratrain.ablation.running.ray_pool import require

        require()


def _run_one(plan: Plan, args: argparse.Namespace) -> int:
    """Trains one run of the plan, as any of the study's pools does, in this process or in one for each GPU."""
    import torch

    from ratrain.ablation.running.execute import begun
    from ratrain.ablation.running.units import run_of
    from ratrain.ablation.running.worker import carry_out
    from ratrain.machine.device import pick_device
    from ratrain.run.spawn import spawn
    from ratrain.run.start import Launch
    from ratrain.sinks.progress import progress

    task = run_of(plan, begun(plan, args.out), args.run)
    launch = Launch(args.out, device=args.device, accept_code_change=args.accept_code_change)
    if args.gpus_per_run > 1 and "WORLD_SIZE" not in os.environ:
        return spawn(args.argv, args.gpus_per_run, device=args.device, folder=launch.folder(task.manifest()))
    if pick_device(args.device).type == "cpu":
        torch.set_num_threads(1)  # the bits of a result depend on it
    code, reason = carry_out(task, launch, progress())
    if os.environ.get("RANK", "0") == "0":
        print(f"run {args.run}, {task.arm} s{task.init}: {reason or 'done'}", file=sys.stderr if reason else sys.stdout)
    return code


def emit(plan: Plan, args: argparse.Namespace) -> int:
    """Writes the next round of runs as jobs; prints the report if there is none."""
    from ratrain.ablation.running.emission import Collected, Emission, write_round
    from ratrain.ablation.running.execute import held

    _, *words = shlex.split(plan.command)
    words += ["--out", str(args.out), "--device", args.device, *(["--no-costs"] if args.no_costs else [])]
    words += ["--accept-code-change"] if args.accept_code_change else []
    emission = Emission(
        args.emit, words, args.only, args.next_round, args.gpus_per_run, args.device != "cpu", args.per_gpu,
        args.jobs or 0, args.sbatch,
    )  # fmt: skip
    collected = Collected()
    found = run_study(plan, args, pool=lambda *_: collected, devices=[args.device] * (args.jobs or 1))
    with held(found.path):
        if args.fresh:
            _move_aside(collected.tasks, args.out)
        script, code = write_round(emission, plan, found.study, collected.tasks)
    if script is None:
        told = _told(found, args)
        return code if collected.tasks else told
    count = len((script.parent / "runs.txt").read_text().splitlines())
    if args.json:
        print_line({"runs": count, "script": script})
    else:
        print(f"{count} runs are to be trained: bash {shlex.quote(str(script))}")
    return code


def _move_aside(tasks: Sequence[Task], out: Path) -> None:
    """Moves the folders of runs aside, which a fresh study trains anew. Raises CannotCreateError if one is in use."""
    from ratrain.storage.folder import RunFolder

    for task in tasks:
        folder = RunFolder(out / task.folder)
        if folder.path.exists():
            with folder.open():
                pass
            folder.move_aside()


def _ray(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of `study` for a Ray cluster."""
    from ratrain.ablation.running.ray_pool import RayPool

    pool = partial(RayPool, address=args.address, gpus_per_run=args.gpus_per_run, device=args.device)
    return {"pool": pool, "devices": [args.device] * (args.jobs or 1)}


def _command(args: argparse.Namespace) -> str:
    """Returns the command that runs the study anew."""
    words = ["ratrain", "--ablate", args.file, *(["--scale", args.scale] if args.scale else [])]
    return command_of(words, args, *(["--budget", args.budget] if args.budget else []))


def command_of(words: Sequence[str], args: argparse.Namespace, *more: str) -> str:
    """Returns the command of these words with the options that a plan depends on."""
    words = [*words, *(word for key in args.set for word in ("--set", key))]
    if isinstance(args.seeds, list):
        words += ["--seeds", ",".join(str(init) for init, _ in args.seeds)]
    elif args.seeds:
        words += ["--seeds", f"{args.seeds.min}..{args.seeds.max}"]
    return shlex.join([*words, *more, *(word for folder in args.patches for word in ("--patches", str(folder)))])


def costs_of(args: argparse.Namespace, study: str, tasks: Sequence[Task]) -> dict[str, float]:
    from ratrain.ablation.running.costs import recorded_costs  # imports torch

    return recorded_costs(args.out, study, tasks, device=args.device, fresh=args.fresh)


def estimated(plan: Plan, args: argparse.Namespace) -> Estimate:
    """Estimates time and disk of the runs that are not done, from a short probe of the baseline."""
    from ratrain.ablation.estimate import Estimate, estimate, probe
    from ratrain.ablation.running.execute import done_runs
    from ratrain.ablation.running.pool import run_devices
    from ratrain.machine.device import pick_device
    from ratrain.run.start import Launch

    devices, tasks = run_devices(args.device, args.jobs, args.memory), _first_tasks(plan)
    done = {} if args.fresh else done_runs(plan, tasks, Launch(args.out, accept_code_change=True))
    left = {task.folder: task for task in tasks if task.folder not in done}
    if not left:
        return Estimate(runs=0, lanes=len(devices), seconds=0.0, disk=0, rate=0.0)
    if pick_device(args.device).type == "cpu":
        import torch

        torch.set_num_threads(1)  # as in each process of the study
    return estimate(plan, left.values(), probe(plan, device=devices[0]), lanes=len(devices))


def _first_tasks(plan: Plan) -> list[Task]:
    """Returns the runs of the plan; with seeds as needed, those up to the first look."""
    seeds = plan.study.seed
    if not seeds.as_needed:
        return list(plan.tasks())
    first = set(seeds.pairs[: seeds.min])
    return [task for task in plan.tasks() if (task.init, task.data) in first]


def _print_plan(plan: Plan, needs: Estimate, checked: Sequence[str], args: argparse.Namespace) -> None:
    from ratrain.ablation.record import planned
    from ratrain.cli.printing.study_text import foretold

    digest, (where, more) = planned(plan).hash, _foresight(plan, args.out)
    if args.json:
        arms = [{"arm": a.name, "role": a.role, "id": a.manifest.id, "recipe": a.recipe} for a in plan.arms]
        ahead = {"noise": where, "detectable": {str(seeds): effect for seeds, effect in more.items()}}
        facts = {"name": plan.name, "hash": digest, "seeds": plan.seeds, "arms": arms, "needs": asdict(needs)}
        print_document({**facts, **ahead, "checked": checked})
        return
    _print_arms(plan)
    print(f"\n{plan.name}, plan {digest[:8]}: {_runs_in_words(plan)}")
    if more:
        print(f"{foretold(more, '' if where != 'unknown' else ' sd')} ({_NOISE[where]})")
    print(_needs_in_words(plan, needs))
    print("\n".join(["", "checked:", *(f"  {check}" for check in checked)]))


def _print_arms(plan: Plan) -> None:
    from ratrain.config.resolve import steps_total

    rows: list[tuple[str, ...]] = [("arm", "role", "recipe", "steps", "parameters", "train FLOPs/token", "KV bytes")]
    for arm in plan.arms:
        built, steps = arm.built, steps_total(arm.manifest)
        costs = built.parameters, built.train_flops_per_token, built.kv_bytes_per_token
        told = arm.role, arm.recipe[:8], "-" if steps is None else f"{steps:,}"
        rows.append((arm.name, *told, *(f"{n:,}" for n in costs)))
    print(table(rows))


def _runs_in_words(plan: Plan) -> str:
    up_to = _up_to(plan)
    return f"{len(plan.arms)} arms x seeds {_seeds_in_words(plan)} = {len(_first_tasks(plan))} runs{up_to}"


def _needs_in_words(plan: Plan, needs: Estimate) -> str:
    if not needs.runs:
        return f"all runs{_up_to(plan)} are done"
    return (
        f"{needs.runs} runs{_up_to(plan)} are left: about {time_text(needs.seconds)}, {needs.lanes} at a time (the "
        f"baseline makes {needs.rate:,.0f} tokens/s here), and {needs.disk / 2**20:,.0f} MiB of checkpoints; nothing "
        "was written"
    )


def _up_to(plan: Plan) -> str:
    return " up to the first look" * plan.study.seed.as_needed


def _seeds_in_words(plan: Plan) -> str:
    section, budget = plan.study.seed, plan.study.budget
    if section.as_needed:
        return f"{section.min} to {section.max} as needed" + (f" within {budget}" if budget else "")
    return ", ".join(f"{init}" if init == data else f"{init}-{data}" for init, data in plan.seeds)


_NOISE = {
    "measured": "from the measured noise of the runs that are done",
    "stated": "from verdict.noise, the stated noise of a run within its seed",
    "unknown": "sd: the standard deviation of a paired difference, not measured yet; verdict.noise states it",
}


def _foresight(plan: Plan, out: Path) -> tuple[str, dict[int, float]]:
    """Returns the source of the noise figure, and the smallest detectable effect by number of seeds."""
    from ratrain.ablation.conclusion import conclude
    from ratrain.ablation.record import Study, planned
    from ratrain.ablation.running.execute import study_folder
    from ratrain.statistics.power import more_seeds

    record, rule = planned(plan), plan.study.rule
    found = conclude(Study(study_folder(plan, out), record, record))
    known = found.judgement.sd if found and math.isfinite(found.judgement.sd) else 0.0
    # noise does not carry over to other scales
    stated = math.sqrt(2) * rule.noise if rule.noise and plan.base.manifest.scale == plan.study.scale else None
    where = "measured" if known else "stated" if stated else "unknown"
    arms = len(plan.of_role("arm", "control"))
    counts = sorted({*range(3, 11), *(range(10, len(plan.seeds), 10)), len(plan.seeds)} - {1, 2})
    options = {"arms": arms, "alpha": rule.alpha, "spending": rule.spending, "counts": counts}
    return where, more_seeds(known or stated or 1.0, **options) if arms else {}


def time_text(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"


COMMANDS: dict[str, Command] = {"--ablate": Command(_ablate_arguments, _ablate)}
