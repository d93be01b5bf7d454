"""`ratrain MANIFEST`: train one variant."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain.cli.arguments import (
    Command,
    buildable,
    count,
    json_argument,
    manifest_arguments,
    natural,
    open_manifest,
    read_manifest,
)
from ratrain.cli.printing.document import print_line
from ratrain.config.read import located
from ratrain.errors import ManifestError, MissingError

if TYPE_CHECKING:
    from ratrain.config.read import Source
    from ratrain.config.schema import Manifest
    from ratrain.run.start import Launch


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", help="path, file name or id of a manifest")
    manifest_arguments(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="parent of the run folders (runs)"
    )
    parser.add_argument("--seed", type=natural, metavar="N", help="sets seed.init and seed.data")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:N")
    parser.add_argument("--devices", type=count, default=None, metavar="N", help="GPUs, or CPU processes, to train on")
    parser.add_argument("--dry-run", action="store_true", help="build, compile, two real steps; needs of the run")
    parser.add_argument(
        "--resume", choices=("auto", "must", "never"), default="auto", help="continue from a checkpoint"
    )
    parser.add_argument("--fresh", action="store_true", help="move an earlier run of this recipe aside, start over")
    parser.add_argument("--accept-code-change", action="store_true", help="continue with changed sources; recorded")
    parser.add_argument("--branch", metavar="RUN@STEP", help="begin at a checkpoint of another run")
    parser.add_argument(
        "--init-from",
        metavar="P",
        help="begin with GPT-2 weights in the layout of Hugging Face: a folder, or a .safetensors file",
    )
    json_argument(parser, "events as JSON lines on stdout; with --dry-run one document")


def _train(args: argparse.Namespace) -> int | None:
    """Train one variant."""
    manifest, source = _resolved(args)
    from ratrain.registry import is_ours
    from ratrain.run.start import AlreadyDone

    try:
        if "WORLD_SIZE" not in os.environ:  # else a process of --devices or torchrun
            _look(manifest, args)
            if not args.json:
                told = sys.stderr if args.dry_run else sys.stdout
                print(f"{manifest.id}, {manifest.scale} scale: loading torch", file=told, flush=True)
            if not all(map(is_ours, manifest.patch.values())):
                from ratrain.contracts.meaning import require_meaning  # imports torch

                require_meaning(buildable(manifest, source, args), source)
            if (args.devices or 1) > 1 and not args.dry_run:
                return _spawn(manifest, args)
        folder = _run(buildable(manifest, source, args), source, args)
    except ManifestError as error:
        raise located(error, source) from error
    except AlreadyDone as done:
        if args.json:
            print_line({"done": done.path, "loss": done.loss})
        else:
            print(f"{done}; --fresh starts it over")
        return None
    if folder and not args.json and os.environ.get("RANK", "0") == "0":
        print(f"everything is in {folder}; ratrain sample {folder} draws more text")
    return None


def _look(manifest: Manifest, args: argparse.Namespace) -> None:
    """Checks whether the run may start, before torch is imported. Raises AlreadyDone, or the reason to refuse it."""
    from ratrain.run.start import may_start

    if not (args.dry_run or args.fresh or args.branch):
        launch = _launch(args)
        may_start(launch.folder(manifest), manifest, launch)


def _run(manifest: Manifest, source: Source, args: argparse.Namespace) -> Path | None:
    """Trains and returns the run's folder; with --dry-run prints the needs of the run and returns None."""
    from ratrain.run.dry_run import dry_run
    from ratrain.run.launch import train
    from ratrain.sinks.jsonl import JsonStream
    from ratrain.sinks.progress import Lines, progress

    if args.dry_run:
        place = _launch(args).folder(manifest).checkpoints
        said = Lines(sys.stderr)
        print(dry_run(manifest, device=args.device, as_json=args.json, emit=said, checkpoints=place))
        return None
    return train(manifest, source, _launch(args), sink=JsonStream() if args.json else progress())


def _launch(args: argparse.Namespace) -> Launch:
    from ratrain.run.start import Launch

    launch = Launch(args.out, args.device, args.resume, args.fresh, args.accept_code_change)
    if not args.branch:
        return launch
    from ratrain.storage.branch import find_branch

    return replace(launch, branch=find_branch(args.branch, args.out))


def _resolved(args: argparse.Namespace) -> tuple[Manifest, Source]:
    """Returns the manifest. If its pretrained weights are gone, an earlier run that recorded their SHA-256 is found."""
    from ratrain.config.identity import run_folder
    from ratrain.config.toml import quoted
    from ratrain.config.weights import remembered_sha256

    if args.init_from is not None:
        args.set = [*args.set, f"init.weights={quoted(args.init_from)}"]
    try:
        return read_manifest(args.manifest, args)
    except MissingError:
        given = args.set
        weights = open_manifest(args.manifest, args)[0].tree.get("init", {}).get("weights")
        for sha256 in remembered_sha256(weights, args.out):
            args.set = [*given, f'init.sha256="{sha256}"']
            manifest, source = read_manifest(args.manifest, args)
            if (args.out / run_folder(manifest)).parent.is_dir():
                return manifest, source
        raise


def _spawn(manifest: Manifest, args: argparse.Namespace) -> int:
    from ratrain.run.spawn import spawn

    return spawn(args.argv, args.devices, device=args.device, folder=_launch(args).folder(manifest))


COMMANDS: dict[str, Command] = {
    "train": Command(_train_arguments, _train),
}
