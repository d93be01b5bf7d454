"""The command line: `ratrain MANIFEST` trains; the other commands look, check and prepare."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain import __version__
from ratrain.errors import Exit, Fault, ManifestError, MissingError, RatrainError, UsageError

if TYPE_CHECKING:  # imported where used: --help and list answer without torch, pydantic or rich
    from ratrain.config.read import Source
    from ratrain.config.schema import Manifest
    from ratrain.registry import Kinds

_EPILOG = """\
examples:
  ratrain v9                                        train a variant by its id (or file, or path)
  ratrain v9 --scale tiny --set schedule.lr=1e-3    smaller, with one key changed
  ratrain manifests/unified_ra_v9.toml --dry-run    build, compile, two steps, and what the run will need
  ratrain list                                      every variant
  ratrain sample @last --prompt 'Enter HAMLET'      text from the newest run

commands (the first word is a command if it is one of these, else a manifest; each has --help):
{commands}

The same command again resumes its run.

exit codes: 0 done, 1 bug, 2 usage, 65 bad data or checkpoint, 66 input missing, 69 device or compiler unavailable,
70 gave up after crashes, 71 out of memory, 73 cannot create or locked, 74 I/O or disk full, 75 preempted (resumable),
76 diverged, 78 bad manifest, 130 interrupted twice
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. Every RatrainError becomes one message on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command, rest = _command(argv)
    add_arguments, run = _COMMANDS[command]
    parser = _parser(command)
    add_arguments(parser)
    args = parser.parse_args(rest)
    args.argv = argv
    try:
        code = run(args) or Exit.DONE
        sys.stdout.flush()
        return code
    except RatrainError as error:
        if str(error):  # what is said already comes without a word
            print(f"ratrain: {error}" if not isinstance(error, ManifestError) else error, file=sys.stderr)
        return error.exit
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:  # the reader of our output left: not our fault, and nothing to say
        _drop_output()
        return Exit.DONE
    except OSError as error:
        _drop_output()
        print(f"ratrain: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return Exit.IO


def _command(argv: list[str]) -> tuple[str, list[str]]:
    """The command that `argv` begins with, of two words or of one ("train" where with none), and what follows."""
    for count in (2, 1):
        if (name := " ".join(argv[:count])) in _COMMANDS:
            return name, argv[count:]
    return "train", argv


def _drop_output() -> None:
    """What is still in stdout's buffer goes nowhere: Python would try to write it at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser(command: str) -> argparse.ArgumentParser:
    if command != "train":
        return argparse.ArgumentParser(prog=f"ratrain {command}", description=_COMMANDS[command][1].__doc__)
    parser = argparse.ArgumentParser(
        prog="ratrain",
        description="Train one variant, described by a manifest.",
        epilog=_EPILOG.format(commands="\n".join(f"  {n:11} {run.__doc__}" for n, (_, run) in _COMMANDS.items())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ratrain {__version__}")
    return parser


# -- what every command that takes a manifest shares ------------------------------------------------------------


def _manifest_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scale", metavar="S", help="overlay of sizes: tiny, study, laptop (default), gpt2_124m, ...")
    parser.add_argument(
        "--set", action="append", default=[], metavar="K=V", help="change one key, e.g. schedule.lr=3e-4"
    )
    parser.add_argument(
        "--patches", action="append", default=[], metavar="DIR", type=Path, help="folder of patch files"
    )


def _natural(text: str) -> int:
    """A seed: from 0 up to what a 63-bit generator takes."""
    if not text.isdecimal() or int(text[:20]) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^63 - 1, got {text!r}")
    return int(text)


def _count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or not int(text[:9]):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text[:9])


def _open(name: str, args: argparse.Namespace) -> tuple[Source, Kinds]:
    """The merged manifest called `name`, and the kinds it may name: also those of patches/ beside its files."""
    from ratrain.config.read import find_manifest, read_source
    from ratrain.registry import patch_kinds

    seed = getattr(args, "seed", None)
    seeds = [] if seed is None else [f"seed.init={seed}", f"seed.data={seed}"]
    source = read_source(find_manifest(name), scale=args.scale, overrides=[*seeds, *args.set])
    beside = (file.parent / "patches" for file in source.files)
    return source, patch_kinds([*(folder for folder in beside if folder.is_dir()), *args.patches])


def _resolve(name: str, args: argparse.Namespace) -> tuple[Manifest, Source]:
    from ratrain.config.resolve import resolve
    from ratrain.registry import optim_kinds

    source, kinds = _open(name, args)
    return resolve(source, patches=kinds, optimizers=optim_kinds()), source


def _located(error: ManifestError, source: Source) -> ManifestError:
    """Faults found while building name a key only: this adds the file and line that wrote it."""

    def where(fault: Fault) -> Fault:
        origin = source.origins.get(fault.key) or source.origins.get(fault.key.rpartition(".")[0])
        return fault if fault.where or origin is None else Fault(str(origin), fault.key, fault.message)

    return ManifestError([where(fault) for fault in error.faults])


# -- train ------------------------------------------------------------------------------------------------------


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", help="path, file name or id of a manifest")
    _manifest_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="where run folders go (runs)")
    parser.add_argument("--seed", type=_natural, metavar="N", help="sets seed.init and seed.data")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:N")
    parser.add_argument("--devices", type=_count, default=None, metavar="N", help="GPUs, or CPU processes, to train on")
    parser.add_argument("--dry-run", action="store_true", help="build, compile, two real steps; say what a run needs")
    parser.add_argument("--resume", choices=("auto", "must", "never"), default="auto", help="go on from a checkpoint")
    parser.add_argument("--fresh", action="store_true", help="move an earlier run of the same aside and start over")
    parser.add_argument("--accept-code-change", action="store_true", help="go on though sources changed; recorded")
    parser.add_argument("--branch", metavar="RUN@STEP", help="begin at a checkpoint of another run")
    parser.add_argument("--json", action="store_true", help="events as JSON lines on stdout")


def _train(args: argparse.Namespace) -> int | None:
    """Train one variant."""
    manifest, source = _resolve(args.manifest, args)
    if (args.devices or 1) > 1 and not args.dry_run and "WORLD_SIZE" not in os.environ:
        return _spawn(manifest, args)
    from ratrain.engine.branch import find_branch
    from ratrain.engine.launch import AlreadyDone, Launch, train
    from ratrain.sinks.jsonl import JsonStream
    from ratrain.sinks.progress import Lines, progress

    try:
        if args.dry_run:
            from ratrain.engine.dry_run import dry_run

            place = Launch(args.out).folder(manifest).checkpoints
            said = Lines(sys.stderr)
            print(dry_run(manifest, device=args.device, as_json=args.json, emit=said, checkpoints=place))
            return None
        sink = JsonStream() if args.json else progress()
        branch = find_branch(args.branch, args.out) if args.branch else None
        launch = Launch(args.out, args.device, args.resume, args.fresh, args.accept_code_change, branch)
        folder = train(manifest, source, launch, sink=sink)
    except ManifestError as error:
        raise _located(error, source) from error
    except AlreadyDone as done:
        print(
            json.dumps({"done": str(done.path), "loss": done.loss}) if args.json else f"{done}; --fresh starts it over"
        )
        return None
    if not args.json and os.environ.get("RANK", "0") == "0":
        print(f"everything is in {folder}; ratrain sample {folder} draws more text")
    return None


def _spawn(manifest: Manifest, args: argparse.Namespace) -> int:
    from ratrain.engine.branch import find_branch
    from ratrain.engine.launch import Launch
    from ratrain.engine.spawn import spawn

    launch = Launch(args.out, branch=find_branch(args.branch, args.out) if args.branch else None)
    return spawn(args.argv, args.devices, device=args.device, folder=launch.folder(manifest))


# -- look -------------------------------------------------------------------------------------------------------


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _list(args: argparse.Namespace) -> None:
    """List every shipped variant and scale."""
    from ratrain.config.catalogue import catalogue
    from ratrain.config.find import scales

    entries = catalogue()
    if args.json:
        print(json.dumps([vars(entry) for entry in entries], indent=1))
        return
    width = max(len(entry.id) for entry in entries)
    for entry in entries:
        mechanisms = ", ".join(kind if kind == name else f"{name} ({kind})" for name, kind in entry.patches) or "-"
        twin = f"  (same as {entry.same_as})" if entry.same_as else ""
        print(f"{entry.id:{width}}  {entry.title}{twin}  [{mechanisms}]  {entry.file}")
        if entry.fault:
            print(f"{'':{width}}  broken: {entry.fault}")
    print(f"\nscales: {', '.join(scales())}")
    print("unified_ra is a gated relabelling of standard attention: the same function class as GPT-2.")


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", help="path, file name or id of a manifest")
    _manifest_arguments(parser)


def _show(args: argparse.Namespace) -> None:
    """Show a manifest with every key resolved, and where each value comes from."""
    manifest, source = _resolve(args.manifest, args)
    from ratrain.config.identity import recipe_hash
    from ratrain.config.render import render

    print(render(manifest, source), end="")
    print(f"\n# recipe {recipe_hash(manifest)[:8]}")
    for key, text in manifest.origin.items():
        print(f"# the reference, {key}: {text}")


def _diff_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="a manifest")
    parser.add_argument("b", help="another manifest")
    _manifest_arguments(parser)


def _diff(args: argparse.Namespace) -> None:
    """Show the keys in which two manifests differ, resolved."""
    from ratrain.config.render import diff

    rows = diff(_resolve(args.a, args)[0], _resolve(args.b, args)[0])
    for key, a, b in rows:
        print(f"{key}: {a!r} -> {b!r}")
    if not rows:
        print(f"{args.a} and {args.b} resolve to the same")


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifests", nargs="*", help="manifests to check (all that are shipped)")
    _manifest_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _check(args: argparse.Namespace) -> int | None:
    """Build manifests on the meta device: parameters, FLOPs, KV bytes, replaced sites, twins."""
    from ratrain.config.find import shipped
    from ratrain.engine.check import Checked, check, table, twins

    checked: list[Checked] = []
    faults: list[Fault] = []
    for name in dict.fromkeys(args.manifests) or map(str, shipped()):
        try:
            manifest, source = _resolve(name, args)
            try:
                checked.append(check(manifest))
            except ManifestError as error:
                raise _located(error, source) from error
        except ManifestError as error:
            faults += error.faults
        except MissingError as error:
            faults.append(Fault("", "", str(error)))
    faults += twins(checked)
    if args.json:
        print(json.dumps([row.record() for row in checked], indent=1))
    elif checked:
        print(table(checked))
    if faults:
        raise ManifestError(faults)
    return None


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", help="a manifest, your own patch's for instance")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="change one key")
    parser.add_argument(
        "--patches", action="append", default=[], metavar="DIR", type=Path, help="folder of patch files"
    )


def _verify(args: argparse.Namespace) -> int:
    """Run every contract on one manifest, made small: causality, checkpoints, gradients, graphs, decoding, ..."""
    from ratrain.engine.contracts import SMALL
    from ratrain.engine.verify import verify

    args.scale, args.set = "tiny", [*SMALL, *args.set]
    manifest, source = _resolve(args.manifest, args)
    broken = 0
    try:
        for verdict in verify(manifest):
            print(
                f"{'holds ' if verdict.fault is None else 'BROKEN'}  {verdict.seconds:5.1f} s  {verdict.claim}",
                flush=True,
            )
            if verdict.fault is not None:
                broken += 1
                print("\n".join(f"        {line}" for line in verdict.fault.splitlines()))
    except ManifestError as error:
        raise _located(error, source) from error
    print(f"{manifest.id}: " + (f"{broken} contracts are broken" if broken else "every contract holds"))
    return Exit.BAD_MANIFEST if broken else Exit.DONE


def _schema_arguments(_parser: argparse.ArgumentParser) -> None:
    pass


def _schema(_args: argparse.Namespace) -> None:
    """Print the JSON schema of manifests, for editors that complete and check TOML."""
    from ratrain.config.render import json_schema
    from ratrain.registry import optim_kinds, patch_kinds

    print(json.dumps(json_schema(patch_kinds(), optim_kinds()), indent=1))


# -- data and text ----------------------------------------------------------------------------------------------


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    from ratrain.recipe.prepare import add_arguments

    add_arguments(parser)


def _prepare(args: argparse.Namespace) -> None:
    """Turn local text into token shards that a manifest's data.source can name."""
    from ratrain.recipe.prepare import run

    run(args)


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number from 0 up, got {text!r}")
    return value


def _sample_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run folder, a prefix of its name, or @last")
    parser.add_argument("--prompt", default="", help="text to continue (by default a new document)")
    parser.add_argument("--tokens", type=_natural, default=200, metavar="N", help="tokens to draw (200)")
    parser.add_argument("--temperature", type=_temperature, default=0.8, metavar="T", help="0: the likeliest (0.8)")
    parser.add_argument(
        "--top-k", type=_natural, default=50, metavar="K", help="draw among the K likeliest; 0: all (50)"
    )
    parser.add_argument("--seed", type=_natural, default=0, metavar="N", help="of the draws (0)")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="where run folders are (runs)")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:N")


def _sample(args: argparse.Namespace) -> None:
    """Draw text from the newest checkpoint of a run."""
    from ratrain.engine.sample import sample

    for piece in sample(
        args.run,
        args.prompt,
        root=args.out,
        count=args.tokens,
        temperature=args.temperature,
        top_k=args.top_k or None,
        seed=args.seed,
        device=args.device,
        warn=lambda message: print(f"warning: {message}", file=sys.stderr),
    ):
        print(piece, end="", flush=True)
    print()


# -- runs -------------------------------------------------------------------------------------------------------


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
    from ratrain.runs import list_runs, table

    runs = list_runs(args.out, args.glob, sort=args.sort)
    if args.json:
        print(json.dumps([run.record() for run in runs], indent=1))
    elif runs:
        print(table(runs, width=shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
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
    parser.add_argument("-n", type=_natural, default=10, dest="lines", metavar="N", help="lines to begin with (10)")
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


_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int | None]]] = {
    "train": (_train_arguments, _train),
    "list": (_list_arguments, _list),
    "show": (_show_arguments, _show),
    "diff": (_diff_arguments, _diff),
    "check": (_check_arguments, _check),
    "verify": (_verify_arguments, _verify),
    "schema": (_schema_arguments, _schema),
    "prepare": (_prepare_arguments, _prepare),
    "sample": (_sample_arguments, _sample),
    "runs": (_runs_arguments, _runs),
    "runs rm": (_rm_arguments, _rm),
    "runs tag": (_tag_arguments, _tag),
    "runs untag": (_tag_arguments, _untag),
    "runs note": (_note_arguments, _note),
    "tail": (_tail_arguments, _tail),
}
