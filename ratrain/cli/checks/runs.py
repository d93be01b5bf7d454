"""`ratrain check runs FILE`: every run of a manifest or study, built, and trained for two steps at the tiny scale."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain.cli.arguments import Command, json_argument
from ratrain.cli.printing.document import print_document
from ratrain.errors import Exit, ManifestError, RatrainError

if TYPE_CHECKING:
    from ratrain.config.schema import Manifest


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a defconfig, a manifest, or an ablation manifest")
    json_argument(parser)


def _check_runs(args: argparse.Namespace) -> int:
    """Build every run of a file at full size, and train two steps of each on the CPU at the tiny scale."""
    import time

    import torch

    from ratrain.cli.printing.tables import aligned
    from ratrain.run.check import check
    from ratrain.run.smoke import resume_once

    torch.set_num_threads(1)  # more threads slow down shapes this small
    rows = []
    for name, manifest, small in _runs(args.file):
        began, parameters, fault = time.perf_counter(), None, None
        try:
            parameters = check(manifest).parameters
            resume_once(small, device="cpu")
        except RatrainError as error:
            fault = str(error.faults[0]) if isinstance(error, ManifestError) else str(error)
        seconds = time.perf_counter() - began
        rows.append({"run": name, "seconds": seconds, "parameters": parameters, "fault": fault})
        if not args.json:
            told = fault if fault is not None else f"{parameters:,} parameters"
            print(aligned((name, f"{seconds:.1f} s", told), (34, 7, 0)), flush=True)
    failed = sum(row["fault"] is not None for row in rows)
    if args.json:
        print_document({"file": args.file, "trainable": not failed, "runs": rows})
    else:
        print(f"{failed} runs cannot be trained" if failed else "all runs can be trained")
    return Exit.BAD_MANIFEST if failed else Exit.DONE


def _runs(file: Path) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Yields name, manifest, and manifest at the tiny scale, of each run."""
    from ratrain.ablation.arms import resolved
    from ratrain.ablation.ladder.manifest import is_ladder
    from ratrain.ablation.manifest import is_ablation
    from ratrain.ablation.plan import make_plan
    from ratrain.config.read import read_source

    quick = ["compile.scope=off", "log.trackers=[]"]
    if is_ladder(file):
        yield from _of_ladder(file, quick)
    elif is_ablation(file):
        small = {arm.name: arm.manifest for arm in make_plan(file, scale="tiny", overrides=quick).arms}
        for arm in make_plan(file).arms:
            yield arm.name, arm.manifest, small[arm.name]
    else:
        whole = resolved(read_source(file), ())
        yield whole.id, whole, resolved(read_source(file, scale="tiny", overrides=quick), ())


def _of_ladder(file: Path, quick: list[str]) -> Iterator[tuple[str, Manifest, Manifest]]:
    from ratrain.ablation.arms import resolved
    from ratrain.ablation.ladder.plan import make_ladder
    from ratrain.config.find import find_scale
    from ratrain.config.parse import parse_file

    tiny = parse_file(find_scale("tiny"))
    tree = {key: value for key, value in tiny.tree.items() if key not in ("extends", "scale")}
    for rung in make_ladder(file, overrides=quick).rungs:
        for arm in rung.plan.arms:
            small = arm.source_of(*arm.seeds[0], replace(tiny, tree=tree))
            yield f"rung {rung.number}: {arm.name}", arm.manifest, resolved(small, ())


COMMANDS: dict[str, Command] = {"check runs": Command(_arguments, _check_runs)}
