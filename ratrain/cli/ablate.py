"""`ratrain --ablate FILE`: run a study and tell what came of it."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain.cli.arguments import Command, count, natural
from ratrain.cli.tables import table
from ratrain.errors import Exit, Fault, ManifestError

if TYPE_CHECKING:
    from ratrain.ablation.conclusion import Conclusion
    from ratrain.ablation.estimate import Estimate
    from ratrain.ablation.plan import Plan, Task
    from ratrain.engine.launch import Launch


def _seeds(text: str) -> list[tuple[int, int]]:
    seeds = [natural(word) for word in text.split(",")]
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"a seed is repeated in {text!r}")
    return [(seed, seed) for seed in seeds]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _ablate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="an ablation manifest: a path, or the name of a shipped one")
    parser.add_argument("--scale", metavar="S", help="overlay of sizes for every arm, in place of the manifest's")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="change one key in every arm")
    parser.add_argument("--seeds", type=_seeds, metavar="N,N,...", help="in place of the manifest's")
    parser.add_argument("--only", type=_words, default=[], metavar="A,A,...", help="these arms, by name or pattern")
    parser.add_argument("--patches", action="append", default=[], metavar="DIR", type=Path, help="folder of patches")
    parser.add_argument("--jobs", type=count, metavar="N", help="runs at a time (one per GPU, or per core)")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:N")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="where run folders go (runs)")
    parser.add_argument("--fresh", action="store_true", help="move earlier runs of the same aside and start over")
    parser.add_argument("--accept-code-change", action="store_true", help="go on though sources changed; recorded")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and run nothing")
    parser.add_argument("--json", action="store_true", help="the results as one JSON document on stdout")


def _ablate(args: argparse.Namespace) -> int:
    """Train every arm of an ablation manifest with every seed, and compare them with the baseline."""
    from ratrain.ablation.conclusion import conclude
    from ratrain.ablation.manifest import find_ablation
    from ratrain.ablation.plan import make_plan
    from ratrain.ablation.results import HEAD, cells, rows_of, write_study

    plan = make_plan(
        find_ablation(args.file),
        scale=args.scale, overrides=args.set, seeds=args.seeds, only=args.only, patches=args.patches,
    )  # fmt: skip
    if args.dry_run:
        _print_plan(plan, _estimate(plan, args), as_json=args.json)
        return Exit.DONE
    code = _run(plan, args)
    rows = rows_of(plan, args.out)
    found = conclude(plan, rows)
    verdicts = {verdict.arm: verdict for verdict in found.judgement.verdicts} if found else {}
    folder = write_study(plan, rows, verdicts, found.record() if found else None, args.out)
    if args.json:
        print((folder / "results.json").read_text())
        return code
    print(f"\n{table([HEAD, *cells(rows, verdicts)])}\n")
    for line in _told(found) if found else ():
        print(line)
    print(folder)
    return code


def _told(found: Conclusion) -> Iterator[str]:
    """The noise that the verdicts stand on, and what more seeds would buy."""
    judgement = found.judgement
    if not judgement.looks:
        yield "no verdicts: they need three seeds or more that all arms have finished"
    yield f"noise of a run within its seed: {judgement.sd:.4f} nats ({judgement.df:.0f} degrees of freedom)"
    for kind, part in found.noise.items():
        low, high = (math.sqrt(limit) for limit in part.interval)
        yield f"  A/A {kind}: {math.sqrt(part.variance):.4f} [{low:.4f}, {high:.4f}]"
    if found.pairing:
        low, high = found.pairing.interval
        yield f"pairing by seed: {found.pairing.ratio:.2f} [{low:.2f}, {high:.2f}] of the unpaired variance"
    if found.more:
        counts = ", ".join(f"{seeds}: {effect:.4f}" for seeds, effect in found.more.items())
        yield f"smallest effect that is found four times of five, by seeds: {counts}"


def _run(plan: Plan, args: argparse.Namespace) -> int:
    """Runs what is not done yet; returns the exit code: of a stop, else of the first run that failed."""
    from ratrain.ablation.board import LineBoard, Standing, board
    from ratrain.ablation.pool import Ended, Pool
    from ratrain.engine.launch import Launch

    launch = Launch(args.out, fresh=args.fresh, accept_code_change=args.accept_code_change)
    tasks = list(plan.tasks())
    done = {} if args.fresh else _done(plan, tasks, launch)
    standing = Standing(plan, tasks, done)
    show = LineBoard(standing, sys.stderr) if args.json else board(standing)
    failed: list[int] = []

    def tell(said: object) -> None:
        show(said)  # type: ignore[arg-type]
        # a run that diverges is a result, and the table says so
        if isinstance(said, Ended) and said.code not in (Exit.DONE, Exit.DIVERGED, Exit.PREEMPTED):
            failed.append(said.code)

    pool = Pool(launch, _devices(args.device, args.jobs), tell)
    try:
        for block in _blocks(plan, tasks, args.out):
            # arms that say they are the same share their runs
            pool.run([task for folder, task in {task.folder: task for task in block}.items() if folder not in done])
            if pool.asked:
                break
    finally:
        show.close()
    return Exit.PREEMPTED if pool.asked else next(iter(failed), Exit.DONE)


def _blocks(plan: Plan, tasks: Sequence[Task], out: Path) -> Iterator[list[Task]]:
    """All runs at once; where arms stop at their verdict, seed by seed, those of arms that have none yet."""
    from ratrain.ablation.conclusion import conclude
    from ratrain.ablation.results import rows_of

    if not plan.verdict.stop:
        yield list(tasks)
        return
    running = {arm.name for arm in plan.arms}
    for init, data in plan.seeds:
        yield [task for task in tasks if (task.init, task.data) == (init, data) and task.arm in running]
        found = conclude(plan, rows_of(plan, out))
        if found and found.judgement.looks:
            running = {plan.base.name, *found.judgement.open} if found.judgement.open else set()


def _done(plan: Plan, tasks: Sequence[Task], launch: Launch) -> dict[str, float]:
    """The final loss of the runs that are done, by folder. Raises ManifestError where other code trained one."""
    from ratrain.engine.folder import RunFolder
    from ratrain.engine.launch import changed_code

    manifests, done, changed = {arm.name: arm.manifest for arm in plan.arms}, {}, {}
    for task in tasks:
        folder = RunFolder(launch.out / task.folder)
        state = folder.read_state()
        if state.get("status") == "done" and isinstance(state.get("loss"), float):
            done[task.folder] = state["loss"]
            changed |= dict.fromkeys(changed_code(folder, manifests[task.arm]), task.folder)
    if changed and not launch.accept_code_change:
        message = "changed since {} was trained; --fresh trains all anew, --accept-code-change takes it as it is"
        raise ManifestError([Fault(name, "", message.format(folder)) for name, folder in changed.items()])
    return done


def _devices(device: str, jobs: int | None) -> list[str]:
    """A device for each run at a time."""
    from ratrain.engine.device import pick_device

    picked = pick_device(device)
    if picked.type == "cpu":
        return ["cpu"] * (jobs or os.cpu_count() or 1)
    import torch

    several = device in ("auto", "cuda")
    gpus = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if several else [str(picked)]
    return [gpus[n % len(gpus)] for n in range(jobs or len(gpus))]


def _estimate(plan: Plan, args: argparse.Namespace) -> Estimate:
    """What the runs that are not done yet will take, from a short probe of the baseline."""
    from ratrain.ablation.estimate import Estimate, estimate, probe
    from ratrain.engine.device import pick_device
    from ratrain.engine.launch import Launch

    devices, tasks = _devices(args.device, args.jobs), list(plan.tasks())
    done = {} if args.fresh else _done(plan, tasks, Launch(args.out, accept_code_change=True))
    left = {task.folder: task for task in tasks if task.folder not in done}
    if not left:
        return Estimate(runs=0, lanes=len(devices), seconds=0.0, disk=0, rate=0.0)
    if pick_device(args.device).type == "cpu":
        import torch

        torch.set_num_threads(1)  # as each of the study's processes has
    return estimate(plan, left.values(), probe(plan, device=devices[0]), lanes=len(devices))


def _print_plan(plan: Plan, needs: Estimate, *, as_json: bool) -> None:
    from ratrain.config.resolve import steps_total

    if as_json:
        arms = [{"arm": arm.name, "id": arm.manifest.id, "recipe": arm.recipe} for arm in plan.arms]
        print(json.dumps({"name": plan.name, "seeds": plan.seeds, "arms": arms, "needs": asdict(needs)}, indent=1))
        return
    rows: list[tuple[str, ...]] = [("arm", "recipe", "steps", "parameters", "train FLOPs/token", "KV bytes/token")]
    for arm in plan.arms:
        built, steps = arm.built, steps_total(arm.manifest)
        costs = built.parameters, built.train_flops_per_token, built.kv_bytes_per_token
        rows.append((arm.name, arm.recipe[:8], "-" if steps is None else f"{steps:,}", *(f"{n:,}" for n in costs)))
    print(table(rows))
    seeds = ", ".join(f"{init}" if init == data else f"{init}-{data}" for init, data in plan.seeds)
    print(f"\n{plan.name}: {len(plan.arms)} arms x seeds {seeds} = {len(plan.arms) * len(plan.seeds)} runs")
    if not needs.runs:
        print("all are done")
        return
    print(
        f"{needs.runs} are left: about {_time(needs.seconds)}, {needs.lanes} at a time (the baseline makes "
        f"{needs.rate:,.0f} tokens/s here), and {needs.disk / 2**20:,.0f} MiB of checkpoints; nothing was written"
    )


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"


COMMANDS: dict[str, Command] = {"--ablate": Command(_ablate_arguments, _ablate)}
