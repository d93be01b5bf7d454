"""Shared parts of the commands: the options of a manifest, its resolution, parsers of numbers."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported in functions: --help and list need no torch, pydantic or rich
    from ratrain.config.read import Source
    from ratrain.config.schema import Manifest
    from ratrain.registry import Kinds


@dataclass(frozen=True)
class Command:
    """A command: its options, and the function that runs it. The docstring of `run` is the help text."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


def manifest_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", metavar="B", help="base model: gpt2 (default), modern")
    parser.add_argument("--scale", metavar="S", help="overlay of sizes: tiny, study, laptop (default), gpt2_124m, ...")
    parser.add_argument(
        "--set", action="append", default=[], metavar="K=V", help="change one key, e.g. schedule.lr=3e-4"
    )
    parser.add_argument(
        "--patches", action="append", default=[], metavar="DIR", type=Path, help="folder of patch files"
    )


def run_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Adds the run, or several, and the folder of runs."""
    parser.add_argument(
        "run", nargs="+" if several else None, help="a run folder, an id, a prefix of its name, or @last"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="parent of the run folders (runs)"
    )


def json_argument(parser: argparse.ArgumentParser, text: str = "one JSON document on stdout") -> None:
    parser.add_argument("--json", action="store_true", help=text)


def natural(text: str) -> int:
    """Parses a seed: a whole number that a 63-bit generator accepts."""
    if not text.isdecimal() or int(text[:20]) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^63 - 1, got {text!r}")
    return int(text)


def share(text: str) -> float:
    """Parses a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text!r}")
    return value


def count(text: str) -> int:
    """Parses a whole number of at least 1."""
    if not text.isdecimal() or not int(text[:9]):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text[:9])


def pool_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every command that trains many runs."""
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="change one key in every arm")
    parser.add_argument("--patches", action="append", default=[], metavar="DIR", type=Path, help="folder of patches")
    parser.add_argument("--jobs", type=count, metavar="N", help="runs at a time (one per GPU, or per core)")
    parser.add_argument("--memory", type=gibibytes, metavar="GIB", help="memory of one run; as many at a time as fit")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:N")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="parent of run folders (runs)")
    parser.add_argument(
        "--fresh", action="store_true", help="move the earlier record and its runs aside and start over"
    )
    parser.add_argument("--accept-code-change", action="store_true", help="continue with changed sources; recorded")


def gibibytes(text: str) -> float:
    try:
        return positive(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected a number of GiB above 0, got {text!r}") from None


def positive(text: str) -> float:
    """Parses a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def open_manifest(name: str, args: argparse.Namespace) -> tuple[Source, Kinds]:
    """Returns the merged manifest called `name` and all patch kinds, with those of patches/ beside its files."""
    from ratrain.config.read import find_manifest, read_source
    from ratrain.registry import patch_kinds

    seed = getattr(args, "seed", None)
    seeds = [] if seed is None else [f"seed.init={seed}", f"seed.data={seed}"]
    base = None if args.base is None else find_manifest(args.base)
    source = read_source(find_manifest(name), base=base, scale=args.scale, overrides=[*seeds, *args.set])
    return source, patch_kinds(args.patches, beside=source.files)


def read_manifest(name: str, args: argparse.Namespace) -> tuple[Manifest, Source]:
    """Returns the manifest called `name` for inspection: without torch, and without classes to build it."""
    from ratrain.registry import declared

    source, kinds = open_manifest(name, args)
    return declared(source, kinds), source


def resolve_manifest(name: str, args: argparse.Namespace) -> tuple[Manifest, Source]:
    """Returns the manifest called `name`, ready to build. Its faults are raised before torch is imported."""
    manifest, source = read_manifest(name, args)
    return buildable(manifest, source, args), source


def buildable(manifest: Manifest, source: Source, args: argparse.Namespace) -> Manifest:
    """Returns a manifest of `read_manifest`, ready to build: imports the files of its kinds."""
    from ratrain.config.resolve import with_kinds
    from ratrain.registry import optim_kinds, patch_kinds

    kinds = patch_kinds(args.patches, beside=source.files)
    return with_kinds(manifest, source, patches=kinds, optimizers=optim_kinds())
