"""`ratrain convert FILE`: a defconfig becomes a manifest, a checkpoint of the reference becomes a run."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ratrain.cli.arguments import Command, json_argument
from ratrain.cli.printing.document import print_document
from ratrain.config.find import find_in_package
from ratrain.errors import DataError, MissingError
from ratrain.legacy.commands.defconfig import command_of, converted, reading_arguments, shape_of


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a defconfig, or a checkpoint (.pt)")
    parser.add_argument(
        "-o", "--to", type=Path, metavar="OUT", help="the manifest's file (stdout), or the run's folder"
    )
    reading_arguments(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="parent of the run folders (runs)"
    )
    json_argument(parser)


def _convert(args: argparse.Namespace) -> None:
    """Turn a configuration or a checkpoint of the reference into a manifest or a run."""
    from ratrain.atomic import write_file
    from ratrain.legacy.readers.defconfig import is_defconfig

    file = args.file if args.file.exists() else find_in_package(str(args.file))
    if file is None:
        raise MissingError(f"{args.file}: no such file; expected a defconfig or a checkpoint of the reference")
    if not is_defconfig(file):
        _convert_checkpoint(args)
        return
    found = converted(file, args)
    if args.to:
        write_file(args.to, [found.text.encode()])
    if args.json:
        told = {"manifest": found.text, "file": args.to, "study": found.is_study, "runs": len(found.runs)}
        print_document({**told, "ignored": list(map(str, found.ignored)), "notes": found.notices})
    elif args.to:
        print(f"{args.to}: {shape_of(found)}; {' '.join(['ratrain', *command_of(found, args.to)])} trains it")
    else:
        print(found.text, end="")


def _convert_checkpoint(args: argparse.Namespace) -> None:
    from ratrain.legacy.checkpoints.read import is_checkpoint

    if not is_checkpoint(args.file):
        message = "neither a defconfig (no line is CONFIG_NAME=value) nor a checkpoint (as torch.save writes them)"
        raise DataError(f"{args.file}: {message}")
    from ratrain.legacy.checkpoints.to_run import convert

    found = convert(args.file, args.to, root=args.out)
    if args.json:
        print_document(asdict(found))
    else:
        print("\n".join(found.lines()))


CONVERT = Command(_convert_arguments, _convert)
