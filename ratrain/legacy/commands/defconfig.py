"""Defconfigs in place of manifests: `ratrain FILE`, `ratrain check FILE`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain.config.find import find_in_package
from ratrain.errors import Exit, UsageError

if TYPE_CHECKING:
    from ratrain.legacy.readers.conversion import Conversion

_READINGS = "intent: what the author meant (default); legacy: what the old tools made of it"
_PROFILES = "intended: mechanisms as they were meant (default); as_run: what the reference computed"


def reading_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reading", choices=("intent", "legacy"), default="intent", help=_READINGS)
    parser.add_argument("--profile", choices=("intended", "as_run"), default="intended", help=_PROFILES)
    parser.add_argument("--strict", action="store_true", help="refuse a defconfig with lines that are ignored")
    parser.add_argument(
        "--accept-unknown", action="store_true", help="ignore unknown lines of a defconfig that choose what is trained"
    )


def converted(file: Path, args: argparse.Namespace) -> Conversion:
    """The manifest of a defconfig, with what is to be known of it on stderr."""
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
    """A file with lines that count for nothing, where that is not allowed."""

    exit = Exit.BAD_MANIFEST


def shape_of(found: Conversion) -> str:
    return f"a study of {len(found.runs)} runs" if found.is_study else "one run"


def command_of(found: Conversion, file: Path) -> list[str]:
    """The command line that runs a conversion."""
    jobs = ["--jobs", str(found.jobs)] if found.is_study and found.jobs > 1 else []
    return [*(["--ablate"] if found.is_study else []), str(file), *jobs]


def with_manifests(argv: Sequence[str]) -> list[str]:
    """`argv` with the manifest of a defconfig in its place, where one is named: converted into runs/legacy/, with the
    options of a conversion taken out. `check` looks at each of its runs at the tiny scale."""
    words = list(argv)
    files = {n: file for n, word in enumerate(words) if (file := _file(word))}
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


def _file(word: str) -> Path | None:
    """The file that `word` names and that may be a defconfig: neither a manifest nor weights, by its ending."""
    if word.endswith((".toml", ".safetensors")):
        return None
    return Path(word) if os.path.isfile(word) else find_in_package(word)


def _written(found: Conversion, out: Path) -> Path:
    from ratrain.atomic import write_file

    file = out / "legacy" / f"{found.name}.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_text() != found.text:
        write_file(file, [found.text.encode()])
    return file


def _untracked(found: Conversion) -> Iterator[str]:
    """Without trackers that are not installed: the old trainers went on without them."""
    import json

    import tomli

    tree = tomli.loads(found.text)
    wanted = tree.get("set", tree).get("log", {}).get("trackers", [])
    there = [name for name in wanted if find_spec(name)]
    if there != wanted:
        gone = ", ".join(name for name in wanted if name not in there)
        print(f"note: going on without {gone}: not installed (pip install 'ratrain[trackers]')", file=sys.stderr)
        yield from ("--set", f"log.trackers={json.dumps(there)}")
