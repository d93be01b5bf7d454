"""Commands about runs that exist: list, delete, tag, note, follow, calibrate."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain.cli.arguments import Command, count, natural
from ratrain.cli.tables import aligned, table
from ratrain.errors import Exit, ManifestError, MissingError, UsageError

if TYPE_CHECKING:
    from ratrain.report.log import RunLog


def _run_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    parser.add_argument(
        "run", nargs="+" if several else None, help="a run folder, an id, a prefix of its name, or @last"
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="where run folders are (runs)")


def _runs_arguments(parser: argparse.ArgumentParser) -> None:
    from ratrain.runs import ORDERS

    parser.add_argument("glob", nargs="?", metavar="GLOB", help="an id or a pattern of names, e.g. 'v9-*/s1' (all)")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="where run folders are (runs)")
    parser.add_argument("--sort", choices=ORDERS, default=ORDERS[0], help=f"what comes first ({ORDERS[0]}: the newest)")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _runs(args: argparse.Namespace) -> None:
    """List runs: how far they are, their loss and speed, tags and note."""
    from ratrain.runs import list_runs
    from ratrain.runs import table as table_of_runs

    runs = list_runs(args.out, args.glob, sort=args.sort)
    if args.json:
        print(json.dumps([run.record() for run in runs], indent=1))
    elif runs:
        print(table_of_runs(runs, width=shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    else:
        print(f"no runs in {args.out}" + (f" fit {args.glob}" if args.glob else ""))


def _rm_arguments(parser: argparse.ArgumentParser) -> None:
    _run_arguments(parser, several=True)
    parser.add_argument("--yes", action="store_true", help="without asking")


def _rm(args: argparse.Namespace) -> None:
    """Delete runs, after asking."""
    from ratrain.engine.folder import find_run
    from ratrain.runs import check_removable, remove, size

    found = {run.resolve(): run for run in (find_run(name, args.out) for name in args.run)}
    for run in found.values():  # all or none
        check_removable(run)
    if not args.yes:
        for run in found.values():
            print(f"{run}  {size(run) / 1e6:.1f} MB")
        if not _agreed(f"delete {'this run' if len(found) == 1 else f'these {len(found)} runs'}? [y/N] "):
            print("nothing was deleted")
            return
    for run in found.values():
        remove(run)
        print(f"deleted {run}")


def _agreed(question: str) -> bool:
    """Whether a person at the terminal says yes. Raises UsageError where there is no terminal."""
    if sys.stdin is None or not sys.stdin.isatty():  # None: it was closed
        raise UsageError("there is no terminal to ask on; --yes deletes without asking")
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _tag_arguments(parser: argparse.ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument("tags", nargs="+", metavar="TAG", help="a word")


def _tag(args: argparse.Namespace) -> None:
    """Add tags to a run."""
    from ratrain.engine.folder import find_run
    from ratrain.engine.notes import tag

    run = find_run(args.run, args.out)
    print(f"{run}: {', '.join(tag(run, args.tags).tags)}")


def _untag(args: argparse.Namespace) -> None:
    """Take tags off a run."""
    from ratrain.engine.folder import find_run
    from ratrain.engine.notes import untag

    run = find_run(args.run, args.out)
    print(f"{run}: {', '.join(untag(run, args.tags).tags) or 'no tags'}")


def _note_arguments(parser: argparse.ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument("text", nargs="+", metavar="TEXT", help="in place of its note; '' takes the note off")


def _note(args: argparse.Namespace) -> None:
    """Write the note of a run."""
    from ratrain.engine.folder import find_run
    from ratrain.engine.notes import note

    run = find_run(args.run, args.out)
    print(f"{run}: {note(run, ' '.join(args.text)).note or 'no note'}")


def _tail_arguments(parser: argparse.ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument("-n", type=natural, default=10, dest="lines", metavar="N", help="lines to begin with (10)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run ends, or Ctrl-C")


def _tail(args: argparse.Namespace) -> None:
    """Show the end of a run's log, and follow it."""
    from ratrain.engine.folder import find_run
    from ratrain.runs import failure, tail

    run = find_run(args.run, args.out)
    try:
        for line in tail(run, args.lines, follow=args.follow):
            print(line, end="", flush=True)
    except KeyboardInterrupt:  # the way to leave: the run is another process, and goes on
        return
    if (reason := failure(run)) is not None:
        print(f"ratrain: {reason}", file=sys.stderr)


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", nargs="+", help="a run folder, an id, a prefix of its name, @last; several are compared; or a study"
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="where run folders are (runs)")


def _report(args: argparse.Namespace) -> None:
    """Tell what a run reached and how its gates went, compare several, or tell what a study came to."""
    from ratrain.engine.folder import find_run
    from ratrain.report.log import read_run

    studies = [found for name in args.run if (found := _study_of(name, args.out))]
    if studies and len(args.run) > 1:
        raise UsageError(f"{studies[0].name} is a study, which is reported by itself; expected one study, or runs")
    if studies:
        _report_study(studies[0])
        return
    logs = [read_run(find_run(name, args.out)) for name in args.run]
    if len(logs) == 1:
        _report_run(logs[0])
    else:
        _report_comparison(logs, args.out)


def _study_of(name: str, out: Path) -> Path | None:
    """The study's folder: a path, or the beginning of a study's name where no run's begins so. Raises UsageError."""
    places = [Path(name), out / "studies" / name]
    found = [place for place in places if (place / "events.jsonl").is_file() and not (place / "resolved.toml").exists()]
    if found or name.startswith("@") or Path(name).is_absolute() or (Path(name) / "resolved.toml").is_file():
        return found[0] if found else None
    fitting = sorted(p.parent for p in (out / "studies").glob(f"{name}*/events.jsonl") if ".old-" not in p.parent.name)
    if not name or not fitting or any(out.glob(f"{name}*/s*/resolved.toml")):
        return None
    if len(fitting) > 1:
        raise UsageError(f"{name}: fits {', '.join(study.name for study in fitting)}")
    return fitting[0]


def _report_study(folder: Path) -> None:
    from ratrain.ablation.conclusion import conclude
    from ratrain.ablation.record import read_study
    from ratrain.ablation.results import rows_of
    from ratrain.cli.told import told
    from ratrain.report.study import write_study_report

    study = read_study(folder)
    rows = rows_of(study)
    found = conclude(study, rows)
    page = write_study_report(study, rows, found)
    print("\n".join([*told(study, rows, found), str(page)]))


def _report_comparison(logs: list[RunLog], out: Path) -> None:
    from ratrain.atomic import write_file
    from ratrain.report.compare import compare_page, compare_rows

    print(table(compare_rows(logs)))
    write_file(out / "comparison.html", [compare_page(logs).encode()])
    print(f"\n{out / 'comparison.html'}")


def _report_run(log: RunLog) -> None:
    from ratrain.atomic import write_file
    from ratrain.report.gates import gate_rows
    from ratrain.report.page import facts, figures_of, page

    print(table(facts(log)))
    if log.probes:
        print()
        print(table(gate_rows(log)))
    figures = figures_of(log)
    (log.path / "figures").mkdir(exist_ok=True)
    for name, image in figures.items():
        write_file(log.path / "figures" / f"{name}.png", [image])
    write_file(log.path / "report.html", [page(log, figures).encode()])
    print(f"\n{log.path / 'report.html'}")


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
    _run_arguments(parser)
    parser.add_argument(
        "--keep", type=_shares, default=[0.1, 0.2, 0.382, 0.6, 1.0], metavar="F,F,...", help="fractions"
    )
    parser.add_argument(
        "--rule", type=_rules, default=["mass", "random", "window"], metavar="R,R,...", help="who stays"
    )
    parser.add_argument("--mode", choices=("v_only", "kv"), default="kv", help="what leaves: values, or keys too (kv)")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:N")


def _prune_eval(args: argparse.Namespace) -> None:
    """Tell what a trained run loses when its KV cache is pruned without further training."""
    from ratrain.atomic import write_file
    from ratrain.engine.folder import find_run
    from ratrain.engine.prune_eval import HEAD, prune_eval, row
    from ratrain.report.figures import prune_figure

    run, rows = find_run(args.run, args.out), []
    widths = (6, 6, 6, 10, 9, 8, 8)
    print(aligned(HEAD, widths))
    for pruned in prune_eval(run, args.keep, args.rule, mode=args.mode, device=args.device, warn=_warn):
        rows.append(pruned)
        print(aligned(row(pruned), widths), flush=True)
    (run / "figures").mkdir(exist_ok=True)
    write_file(run / "prune-eval.json", [json.dumps([vars(pruned) for pruned in rows], indent=1).encode()])
    write_file(run / "figures" / "prune-eval.png", [prune_figure([vars(pruned) for pruned in rows])])
    print(f"\n{run / 'figures' / 'prune-eval.png'}")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN[@STEP]", help="a run folder, an id, a prefix of its name, or @last")
    parser.add_argument("--channels", metavar="K", help="of the head dimension: a fraction, or a count (0.5)")
    parser.add_argument("--transform", metavar="T", help="spline (default), or pca")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="e.g. patch.kv_splice.vectors=8192")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="where run folders are (runs)")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:N")
    parser.add_argument("--fresh", action="store_true", help="move an earlier one of the same aside and start over")
    parser.add_argument("--json", action="store_true", help="events as JSON lines on stdout")


def _calibrate(args: argparse.Namespace) -> None:
    """Fit KV splice to a trained run: a new run with its weights, whose cache keeps values in fewer channels."""
    from ratrain.cli.arguments import located
    from ratrain.engine.calibrate import calibrate, spliced
    from ratrain.engine.launch import AlreadyDone, Launch
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
        print(
            json.dumps({"done": str(done.path), "loss": done.loss}) if args.json else f"{done}; --fresh starts it over"
        )
        return
    if not args.json:
        print(f"everything is in {folder}; ratrain sample {folder} draws text")


def _replay_arguments(parser: argparse.ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument("--arm", metavar="A", help="RUN is the folder of a study, or its name: this arm of it")
    parser.add_argument("--seed", type=natural, default=1, metavar="N", help="with --arm: of this seed (1)")
    parser.add_argument("--from", dest="begin", type=natural, default=0, metavar="STEP", help="a checkpoint's (0)")
    parser.add_argument("--steps", type=count, default=50, metavar="N", help="how many (50)")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:N")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _replay(args: argparse.Namespace) -> int:
    """Take some steps of a finished run again, and compare losses and weights with what it logged."""
    from ratrain.engine.replay import TOLERANCE, replay

    found = replay(_run_of(args), begin=args.begin, steps=args.steps, device=args.device)
    if args.json:
        print(json.dumps(found.record(), indent=1))
        return Exit.DONE if found.holds else Exit.BAD_DATA
    print(f"{found.run}, steps {found.begin + 1} to {found.end}")
    print(f"losses         {found.equal} of {found.compared} equal to the bit, largest difference {found.largest:.2g}")
    for step, same in found.weights.items():
        print(f"weights        {'equal to the bit' if same else 'other bits'} at step {step}")
    for line in found.unlike:
        print(f"not as it was  {line}")
    told = "the log holds" if found.exact else f"the log holds within {TOLERANCE:g}" if found.holds else "NOT as logged"
    print(told)
    return Exit.DONE if found.holds else Exit.BAD_DATA


def _run_of(args: argparse.Namespace) -> Path:
    """RUN itself, or the run of an arm and seed of the study that it names."""
    from ratrain.ablation.record import read_study
    from ratrain.engine.folder import find_run

    if args.arm is None:
        return find_run(args.run, args.out)
    folder = _study_of(args.run, args.out)
    if folder is None:
        raise MissingError(f"{args.run}: no such study in {args.out / 'studies'}")
    study = read_study(folder)
    arms = {arm.name: arm for arm in [*study.now.arms, *study.tuned]}
    if args.arm not in arms:
        raise UsageError(f"--arm {args.arm}: the arms of {folder.name} are {', '.join(arms)}")
    arm = arms[args.arm]
    seeds = {init: run for (init, _), run in zip(arm.seeds, arm.folders, strict=True)}
    if args.seed not in seeds:
        raise UsageError(f"--seed {args.seed}: the seeds of {folder.name} are {', '.join(map(str, seeds))}")
    return study.out / seeds[args.seed]


COMMANDS: dict[str, Command] = {
    "runs": Command(_runs_arguments, _runs),
    "runs rm": Command(_rm_arguments, _rm),
    "runs tag": Command(_tag_arguments, _tag),
    "runs untag": Command(_tag_arguments, _untag),
    "runs note": Command(_note_arguments, _note),
    "report": Command(_report_arguments, _report),
    "calibrate": Command(_calibrate_arguments, _calibrate),
    "prune-eval": Command(_prune_eval_arguments, _prune_eval),
    "replay": Command(_replay_arguments, _replay),
    "tail": Command(_tail_arguments, _tail),
}
