"""`ratrain convert FILE`, and defconfigs in place of manifests: `ratrain FILE`, `ratrain check FILE`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain.cli.arguments import Command
from ratrain.errors import DataError, Exit, ManifestError, MissingError, RatrainError, UsageError

if TYPE_CHECKING:
    from ratrain.config.schema import Manifest
    from ratrain.legacy.readers.converted import Conversion

_READINGS = "intent: the author's intention (default); legacy: the configuration that the old tools made of it"
_PROFILES = "intended: mechanisms as designed (default); as_run: mechanisms as the reference computed them"


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a defconfig, or a checkpoint (.pt)")
    parser.add_argument(
        "-o", "--to", type=Path, metavar="OUT", help="the manifest's file (stdout), or the run's folder"
    )
    _reading_arguments(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="parent of the run folders (runs)"
    )


def _reading_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reading", choices=("intent", "legacy"), default="intent", help=_READINGS)
    parser.add_argument("--profile", choices=("intended", "as_run"), default="intended", help=_PROFILES)
    parser.add_argument("--strict", action="store_true", help="refuse a defconfig if a line of it is ignored")
    parser.add_argument(
        "--accept-unknown", action="store_true", help="ignore unknown lines of a defconfig that choose what is trained"
    )


def _convert(args: argparse.Namespace) -> None:
    """Turn a configuration or a checkpoint of the reference into a manifest or a run."""
    from ratrain.atomic import write_file
    from ratrain.legacy.readers.defconfig import is_defconfig

    file = args.file if args.file.exists() else _shipped(str(args.file))
    if file is None:
        raise MissingError(f"{args.file}: no such file; expected a defconfig or a checkpoint of the reference")
    if not is_defconfig(file):
        _convert_checkpoint(args)
        return
    found = _converted(file, args)
    if args.to:
        write_file(args.to, [found.text.encode()])
        print(f"{args.to}: {_shape(found)}; {' '.join(['ratrain', *_words(found, args.to)])} trains it")
    else:
        print(found.text, end="")


def _convert_checkpoint(args: argparse.Namespace) -> None:
    from ratrain.legacy.readers.checkpoint import is_checkpoint

    if not is_checkpoint(args.file):
        message = "neither a defconfig (no line is CONFIG_NAME=value) nor a checkpoint (as torch.save writes them)"
        raise DataError(f"{args.file}: {message}")
    from ratrain.convert import convert

    print("\n".join(convert(args.file, args.to, root=args.out).told()))


def _converted(file: Path, args: argparse.Namespace) -> Conversion:
    """Converts a defconfig to a manifest; prints warnings and notes on stderr."""
    from ratrain.legacy.readers.convert import convert_defconfig
    from ratrain.legacy.readers.environment import is_dry

    found = convert_defconfig(
        file,
        reading=args.reading,
        profile=args.profile,
        environment=os.environ,
        accept_unknown=args.accept_unknown,
    )
    for fault in found.ignored:
        print(f"warning: {fault}", file=sys.stderr)
    for text in found.notices:
        print(f"note: {text}", file=sys.stderr)
    found.dry_run |= is_dry(os.environ)
    if args.strict and found.ignored:
        count = "a line is" if len(found.ignored) == 1 else f"{len(found.ignored)} lines are"
        raise StrictError(f"{file}: --strict: {count} ignored or changed (above)")
    return found


class StrictError(UsageError):
    """Lines of a file are ignored although --strict is given."""

    exit = Exit.BAD_MANIFEST


def _shape(found: Conversion) -> str:
    return f"a study of {len(found.runs)} runs" if found.is_study else "one run"


def _words(found: Conversion, file: Path) -> list[str]:
    """The command line that runs a conversion."""
    jobs = ["--jobs", str(found.jobs)] if found.is_study and found.jobs > 1 else []
    return [*(["--ablate"] if found.is_study else []), str(file), *jobs]


def with_manifests(argv: Sequence[str]) -> list[str]:
    """Replaces a defconfig in `argv` by its manifest, written to runs/legacy/, and takes out the conversion's options.

    `check FILE` becomes `check runs`, which builds each run and trains it briefly at the tiny scale.
    """
    words = list(argv)
    files = {n: file for n, word in enumerate(words) if (file := _file(word))}
    if not files:
        return words
    from ratrain.legacy.readers.defconfig import is_defconfig

    at = next((n for n, file in files.items() if is_defconfig(file)), None)
    if at is None:
        return words
    parser = argparse.ArgumentParser(prog="ratrain", add_help=False, allow_abbrev=False)
    _reading_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args, rest = parser.parse_known_args([*words[:at], *words[at + 1 :]])
    found = _converted(files[at], args)
    file = _written(found, args.out)
    print(f"{words[at]}: {_shape(found)}, as {file}", file=sys.stderr)
    if rest[:1] == ["check"]:
        return ["check", "runs", str(file), *rest[1:]]
    command = [*_words(found, file), *(word for word in rest if word != "--ablate"), *_untracked(found)]
    if found.dry_run and "--dry-run" not in command:
        command.append("--dry-run")
    return command if args.out == Path("runs") else [*command, "--out", str(args.out)]


def _file(word: str) -> Path | None:
    """Returns the file named by `word` if it may be a defconfig: neither a manifest nor weights, by its suffix."""
    if word.endswith((".toml", ".safetensors")):
        return None
    return Path(word) if os.path.isfile(word) else _shipped(word)


def _shipped(word: str) -> Path | None:
    """Returns the package's file for `legacy/...`, for working directories without a link to the package's folder."""
    if not word.startswith("legacy/"):
        return None
    from ratrain.config.find import find_in_package

    return find_in_package(word)


def _written(found: Conversion, out: Path) -> Path:
    from ratrain.atomic import write_file

    file = out / "legacy" / f"{found.name}.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_text() != found.text:
        write_file(file, [found.text.encode()])
    return file


def _untracked(found: Conversion) -> Iterator[str]:
    """Yields the option that drops trackers which are not installed: the old trainers continued without them."""
    import json

    import tomli

    tree = tomli.loads(found.text)
    wanted = tree.get("set", tree).get("log", {}).get("trackers", [])
    there = [name for name in wanted if find_spec(name)]
    if there != wanted:
        gone = ", ".join(name for name in wanted if name not in there)
        print(f"note: continuing without {gone}: not installed (pip install 'ratrain[trackers]')", file=sys.stderr)
        yield from ("--set", f"log.trackers={json.dumps(there)}")


def _check_runs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a defconfig, a manifest, or an ablation manifest")


def _check_runs(args: argparse.Namespace) -> int:
    """Build every run of a file at full size, and train two steps of each on the CPU at the tiny scale."""
    import time

    import torch

    from ratrain.cli.tables import aligned
    from ratrain.run.check import check
    from ratrain.run.smoke import resume_once

    torch.set_num_threads(1)  # more threads slow down shapes this small
    failed = 0
    for name, manifest, small in _runs(args.file):
        began = time.perf_counter()
        try:
            built = check(manifest)
            resume_once(small, device="cpu")
            told = f"{built.parameters:,} parameters"
        except RatrainError as error:
            failed, told = failed + 1, str(error.faults[0]) if isinstance(error, ManifestError) else str(error)
        verdict = f"{time.perf_counter() - began:.1f} s"
        print(aligned((name, verdict, told), (34, 7, 0)), flush=True)
    print(f"{failed} runs cannot be trained" if failed else "all runs can be trained")
    return Exit.BAD_MANIFEST if failed else Exit.DONE


def _runs(file: Path) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Yields name, manifest, and manifest at the tiny scale, of each run."""
    import tomli

    from ratrain.ablation.arms import resolved
    from ratrain.ablation.plan import make_plan
    from ratrain.config.read import read_source

    quick = ["compile.scope=off", "log.trackers=[]"]
    if "base" in tomli.loads(file.read_text()):
        small = {arm.name: arm.manifest for arm in make_plan(file, scale="tiny", overrides=quick).arms}
        for arm in make_plan(file).arms:
            yield arm.name, arm.manifest, small[arm.name]
    else:
        whole = resolved(read_source(file), ())
        yield whole.id, whole, resolved(read_source(file, scale="tiny", overrides=quick), ())


COMMANDS: dict[str, Command] = {
    "convert": Command(_convert_arguments, _convert),
    "check runs": Command(_check_runs_arguments, _check_runs),
}
