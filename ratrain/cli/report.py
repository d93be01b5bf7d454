"""The commands report (results of runs and studies) and replay (repeats steps to confirm a log)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain.cli.arguments import Command, count, json_argument, natural
from ratrain.cli.printing.document import print_document
from ratrain.cli.printing.tables import table
from ratrain.errors import CannotCreateError, Exit, MissingError, UnavailableError, UsageError
from ratrain.plugins import offered

if TYPE_CHECKING:
    from ratrain.storage.run_log import RunLog


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        nargs="+",
        help="a run folder, an id, a prefix of its name, or @last; several are compared; or a study, or a ladder; or "
        "metrics of the reference (training_metrics.json, all_results.json, a test_matrix_results folder)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="parent of the run folders (runs)"
    )
    json_argument(parser)


def _report(args: argparse.Namespace) -> None:
    """Report losses and gates of a run, compare several runs, or report the verdicts of a study or a ladder."""
    from ratrain.storage.folder import find_run
    from ratrain.storage.run_log import read_run

    foreign = any(_is_foreign(Path(name)) for name in args.run)
    as_json = {"as_json": True} if args.json else {}
    if foreign and any(entry.load()(args.run, args.out, **as_json) for entry in offered("ratrain.reports")):
        return
    for kind, find, report in (("ladder", _ladder_of, _report_ladder), ("study", _study_of, _report_study)):
        folders = [found for name in args.run if (found := find(name, args.out))]
        if folders and len(args.run) > 1:
            raise UsageError(
                f"{folders[0].name} is a {kind}, which is reported by itself; expected one {kind}, or runs"
            )
        if folders:
            report(folders[0], args)
            return
    logs = [read_run(find_run(name, args.out)) for name in args.run]
    if len(logs) == 1:
        _report_run(logs[0], args)
    else:
        _report_comparison(logs, args)


def _ladder_of(name: str, out: Path) -> Path | None:
    """Finds a ladder by its folder or its id."""
    places = [Path(name).resolve(), (out / "ladders" / name).resolve()] if name else []
    found = (place for place in places if place.parent.name == "ladders")
    return next((place for place in found if (place / "events.jsonl").is_file()), None)


def _study_of(name: str, out: Path) -> Path | None:
    """Finds a study by path, or by a prefix of its name that no run's name shares. Raises UsageError if several fit."""
    places = [Path(name), out / "studies" / name]
    found = [place for place in places if (place / "events.jsonl").is_file() and not (place / "resolved.toml").exists()]
    if found or name.startswith("@") or Path(name).is_absolute() or (Path(name) / "resolved.toml").is_file():
        return found[0] if found else None
    fitting = sorted(p.parent for p in (out / "studies").glob(f"{name}*/events.jsonl") if ".old-" not in p.parent.name)
    if not name or not fitting or any(out.glob(f"{name}*/s*/resolved.toml")):
        return None
    if len(fitting) > 1:
        raise UsageError(f"{name}: expected one study; it fits {', '.join(study.name for study in fitting)}")
    return fitting[0]


def _is_foreign(path: Path) -> bool:
    """Returns whether a path exists that is no folder of a run or study."""
    own = ("resolved.toml", "events.jsonl", "state.json")
    return path.is_file() or (path.is_dir() and not any((path / name).is_file() for name in own))


def make_folder(out: Path) -> None:
    """Creates the folder of a page. Raises CannotCreateError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreateError(f"{out}: cannot be created: {error.strerror}; choose another --out") from error


def _report_ladder(folder: Path, args: argparse.Namespace) -> None:
    from ratrain.ablation.ladder.climb import look
    from ratrain.ablation.ladder.record import read_ladder_record
    from ratrain.cli.printing.ladder_text import ladder_lines
    from ratrain.report.ladder.write import ladder_record, write_ladder_report

    found = look(read_ladder_record(folder))
    page = write_ladder_report(found)
    if args.json:
        print_document({"kind": "ladder", **ladder_record(found), "page": page})
    else:
        print("\n".join([*ladder_lines(found), str(page)]))


def _report_study(folder: Path, args: argparse.Namespace) -> None:
    from ratrain.ablation.conclusion import conclude
    from ratrain.ablation.record import read_study
    from ratrain.ablation.results import rows_of
    from ratrain.cli.printing.study_text import study_lines
    from ratrain.report.study.write import study_record, write_study_report

    study = read_study(folder)
    rows = rows_of(study)
    found = conclude(study, rows)
    page = write_study_report(study, rows, found)
    if args.json:
        print_document({"kind": "study", **study_record(study, rows, found), "page": page})
    else:
        print("\n".join([*study_lines(study, rows, found), str(page)]))


def _report_comparison(logs: list[RunLog], args: argparse.Namespace) -> None:
    from ratrain.atomic import write_file
    from ratrain.report.compare import compare_page, compare_rows, not_compared
    from ratrain.report.record import comparison_record

    make_folder(args.out)
    page = args.out / "comparison.html"
    write_file(page, [compare_page(logs).encode()])
    if args.json:
        print_document({"kind": "comparison", **comparison_record(logs), "page": page})
        return
    print(table(compare_rows(logs)))
    if warning := not_compared(logs):
        print(f"warning: {warning}")
    print(f"\n{page}")


def _report_run(log: RunLog, args: argparse.Namespace) -> None:
    from ratrain.atomic import write_file
    from ratrain.report.page import figures_of, page
    from ratrain.report.record import run_record

    figures, missing = {}, ""
    try:
        figures = figures_of(log)
    except UnavailableError as error:  # the page has its tables without them
        missing = str(error)
    (log.path / "figures").mkdir(exist_ok=True)
    for name, image in figures.items():
        write_file(log.path / "figures" / f"{name}.png", [image])
    file = log.path / "report.html"
    write_file(file, [page(log, figures, missing).encode()])
    if args.json:
        print_document({"kind": "run", **run_record(log), "page": file})
    else:
        _print_run(log)
        print(f"\n{file}")
    if missing:
        print(f"warning: {missing}", file=sys.stderr)


def _print_run(log: RunLog) -> None:
    from ratrain.report.gates import gate_rows
    from ratrain.report.page import TASKS_HEAD, facts, task_rows

    print(table(facts(log)))
    if rows := task_rows(log):
        print()
        print(table([TASKS_HEAD, *rows]))
    if log.probes:
        print()
        print(table(gate_rows(log)))


def _replay_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run folder, an id, a prefix of its name, or @last; with --arm a study")
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="parent of the run folders (runs)"
    )
    parser.add_argument("--arm", metavar="A", help="arm to replay, if RUN is a study's folder or name")
    parser.add_argument("--seed", type=natural, default=1, metavar="N", help="seed of the arm's run (1)")
    parser.add_argument(
        "--from", dest="begin", type=natural, default=0, metavar="STEP", help="begin at a checkpoint (0)"
    )
    parser.add_argument("--steps", type=count, default=50, metavar="N", help="steps to repeat (50)")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:N")
    json_argument(parser)


def _replay(args: argparse.Namespace) -> int:
    """Repeat some steps of a finished run, and compare losses and weights with its log."""
    from ratrain.run.replay import TOLERANCE, replay

    found = replay(_run_of(args), begin=args.begin, steps=args.steps, device=args.device)
    if args.json:
        print_document(found.record())
        return Exit.DONE if found.holds else Exit.BAD_DATA
    print(f"{found.run}, steps {found.begin + 1} to {found.end}")
    print(f"losses         {found.equal} of {found.compared} equal to the bit, largest difference {found.largest:.2g}")
    for step, same in found.weights.items():
        print(f"weights        {'equal to the bit' if same else 'different bits'} at step {step}")
    for line in found.unlike:
        print(f"changed since  {line}")
    told = "the log holds" if found.exact else f"the log holds within {TOLERANCE:g}" if found.holds else "NOT as logged"
    print(told)
    return Exit.DONE if found.holds else Exit.BAD_DATA


def _run_of(args: argparse.Namespace) -> Path:
    """Returns the folder of RUN or, if RUN is a study, of its run with --arm and --seed."""
    from ratrain.ablation.record import read_study
    from ratrain.storage.folder import find_run

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
    "report": Command(_report_arguments, _report),
    "replay": Command(_replay_arguments, _replay),
}
