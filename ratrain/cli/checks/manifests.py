"""The commands check and smoke: manifests built on the meta device, or trained for a tiny budget."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ratrain.cli.arguments import (
    Command,
    buildable,
    json_argument,
    manifest_arguments,
    read_manifest,
    resolve_manifest,
)
from ratrain.cli.printing.document import print_document, print_line
from ratrain.cli.printing.tables import aligned
from ratrain.config.read import located
from ratrain.errors import Fault, ManifestError, MissingError, RatrainError

if TYPE_CHECKING:
    from ratrain.config.read import Source
    from ratrain.config.schema import Manifest


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifests", nargs="*", help="manifests to check (all shipped ones)")
    manifest_arguments(parser)
    json_argument(parser)


def _check(args: argparse.Namespace) -> int | None:
    """Build manifests on the meta device: parameters, FLOPs, KV bytes, replaced sites, twins."""
    from ratrain.config.find import shipped

    faults: list[Fault] = []
    read = []
    for name in dict.fromkeys(args.manifests) or map(str, shipped()):
        try:
            read.append(read_manifest(name, args))
        except ManifestError as error:
            faults += error.faults
        except MissingError as error:
            faults.append(Fault("", "", str(error)))
    if read:
        faults += _checked(read, args)
    elif args.json:
        print_document([])
    if faults:
        raise ManifestError(faults)
    return None


def _checked(read: Sequence[tuple[Manifest, Source]], args: argparse.Namespace) -> list[Fault]:
    """Prints a table of the manifests that can be built; returns the faults of the others, and twins."""
    from ratrain.run.check import check, table, twins

    checked, faults = [], []
    for manifest, source in read:
        try:
            checked.append(check(buildable(manifest, source, args)))
        except ManifestError as error:
            faults += located(error, source).faults
    if args.json:
        print_document([row.record() for row in checked])
    elif checked:
        print(table(checked))
    return [*faults, *twins(checked)]


def _smoke_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifests", nargs="*", help="manifests to train (all shipped ones)")
    manifest_arguments(parser)
    parser.set_defaults(scale="tiny")
    parser.add_argument(
        "--resume", action="store_true", help="two steps each: all mechanisms off, a restart, all of them on"
    )
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:N")
    json_argument(parser, "one JSON line per manifest on stdout")


def _smoke(args: argparse.Namespace) -> int | None:
    """Train every manifest to the end of a tiny budget, without keeping the runs."""
    from ratrain.config.catalogue import catalogue

    names = list(dict.fromkeys(args.manifests)) or [entry.id for entry in catalogue()]
    resolved: dict[str, tuple[Manifest, Source]] = {}
    failed: list[RatrainError] = []

    def failure(name: str, error: RatrainError) -> None:
        failed.append(error)
        print(f"ratrain: {name}: {error}", file=sys.stderr)

    for name in names:
        try:
            resolved[name] = resolve_manifest(name, args)
        except RatrainError as error:
            failure(name, error)
    if resolved:
        _train_briefly(resolved, args, failure)
    if failed:
        print(f"ratrain: {len(failed)} of {len(names)} failed", file=sys.stderr)
    return failed[0].exit if failed else None


def _train_briefly(
    resolved: dict[str, tuple[Manifest, Source]],
    args: argparse.Namespace,
    failure: Callable[[str, RatrainError], None],
) -> None:
    """Prints a row for each manifest. Hands its error to `failure` if it fails, and continues with the next."""
    from ratrain.run.smoke import HEAD, RESUMED_HEAD, resume_once, resumed_row, row, smoke  # imports torch

    longest = max(map(len, resolved))
    widths = (longest, 13, 12, 34, 11, 7) if args.resume else (longest, 6, 10, 9, 10, 34, 7)
    if not args.json:
        print(aligned(RESUMED_HEAD if args.resume else HEAD, widths))
    for name, (manifest, source) in resolved.items():
        try:
            if args.resume:
                resumed = resume_once(manifest, device=args.device)
                record, cells = resumed.record(), resumed_row(resumed)
            else:
                smoked = smoke(manifest, source, device=args.device)
                record, cells = smoked.record(), row(smoked)
            if args.json:
                print_line(record)
            else:
                print(aligned(cells, widths), flush=True)
        except RatrainError as error:
            failure(name, error)


COMMANDS: dict[str, Command] = {
    "check": Command(_check_arguments, _check),
    "smoke": Command(_smoke_arguments, _smoke),
}
