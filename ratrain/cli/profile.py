"""`ratrain profile MANIFEST`: time and bytes of a train step by phase."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ratrain.cli.arguments import Command, count, json_argument, manifest_arguments, resolve_manifest
from ratrain.cli.printing.document import print_document
from ratrain.config.read import located
from ratrain.errors import ManifestError


def _profile_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", help="path, file name or id of a manifest")
    manifest_arguments(parser)
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:N")
    parser.add_argument("--steps", type=count, default=10, metavar="N", help="steps under the profiler (10)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for trace, memory and table (profile-<id>-<scale>)"
    )
    json_argument(parser, "profile.json on stdout instead of the table")


def _profile(args: argparse.Namespace) -> None:
    """Show time and bytes of a train step by phase, against the roofline of this machine."""
    manifest, source = resolve_manifest(args.manifest, args)
    from ratrain.machine.device import pick_device
    from ratrain.profile.folder import default_folder
    from ratrain.profile.measure import profile_step
    from ratrain.profile.table import table

    device, folder = pick_device(args.device), args.out or default_folder(manifest)
    try:
        told = profile_step(manifest, device, steps=args.steps, folder=folder, say=_say)
    except ManifestError as error:
        raise located(error, source) from error
    if args.json:
        print_document(told)
        return
    print(table(told))
    print(f"\n{folder}: {', '.join(told['files'])}; the trace opens in ui.perfetto.dev")


def _say(text: str) -> None:
    print(f"ratrain: {text}", file=sys.stderr, flush=True)


COMMANDS: dict[str, Command] = {
    "profile": Command(_profile_arguments, _profile),
}
