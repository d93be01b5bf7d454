"""Defconfigs in place of manifests: `ratrain FILE`, `ratrain check FILE`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain.config.find import find_foreign
from ratrain.errors import Exit, UsageError

if TYPE_CHECKING:
    from ratrain.legacy.readers.conversion import Conversion

_READINGS = "intent: the author's intention (default); legacy: the configuration that the old tools made of it"
_PROFILES = "intended: mechanisms as designed (default); as_run: mechanisms as the reference computed them"


def reading_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reading", choices=("intent", "legacy"), default="intent", help=_READINGS)
    parser.add_argument("--profile", choices=("intended", "as_run"), default="intended", help=_PROFILES)
    parser.add_argument("--strict", action="store_true", help="refuse a defconfig if a line of it is ignored")
    parser.add_argument(
        "--accept-unknown", action="store_true", help="ignore unknown lines of a defconfig that choose what is trained"
    )


def converted(file: Path, args: argparse.Namespace) -> Conversion:
    """Converts a defconfig to a manifest; prints warnings and notes on stderr."""
    from ratrain.legacy.readers.environment import is_dry
    from ratrain.legacy.readers.to_manifest import convert_defconfig

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


def shape_of(found: Conversion) -> str:
    return f"a study of {len(found.runs)} runs" if found.is_study else "one run"


def command_of(found: Conversion, file: Path) -> list[str]:
    """The command line that runs a conversion."""
    jobs = ["--jobs", str(found.jobs)] if found.is_study and found.jobs > 1 else []
    return [*(["--ablate"] if found.is_study else []), str(file), *jobs]


def with_manifests(argv: Sequence[str]) -> list[str]:
    """Replaces a defconfig in `argv` by its manifest, written to runs/legacy/, and takes out the conversion's options.

    `check FILE` becomes `check runs`, which builds each run and trains it briefly at the tiny scale.
    """
    words = list(argv)
    files = {n: file for n, word in enumerate(words) if (file := find_foreign(word))}
    if not files:
        return words
    from ratrain.legacy.readers.defconfig import is_defconfig

    at = next((n for n, file in files.items() if is_defconfig(file)), None)
    if at is None:
        return words
    parser = argparse.ArgumentParser(prog="ratrain", add_help=False, allow_abbrev=False)
    reading_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args, rest = parser.parse_known_args([*words[:at], *words[at + 1 :]])
    found = converted(files[at], args)
    file = _written(found, args.out)
    print(f"{words[at]}: {shape_of(found)}, as {file}", file=sys.stderr)
    if rest[:1] == ["check"]:
        return ["check", "runs", str(file), *rest[1:]]
    command = [*command_of(found, file), *(word for word in rest if word != "--ablate"), *_untracked(found)]
    if found.dry_run and "--dry-run" not in command:
        command.append("--dry-run")
    return command if args.out == Path("runs") else [*command, "--out", str(args.out)]


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
