"""The command coordcheck: whether the coordinates of a model stay of one size as it grows."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ratrain.cli.arguments import (
    Command,
    count,
    json_argument,
    manifest_arguments,
    open_manifest,
    resolve_manifest,
)
from ratrain.cli.printing.document import print_document
from ratrain.cli.printing.tables import table as aligned_table
from ratrain.config.read import located
from ratrain.errors import Exit, ManifestError, UsageError


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", help="path, file name or id of a manifest")
    axis = parser.add_mutually_exclusive_group()
    axis.add_argument("--widths", type=_sizes, metavar="N,N", help="values of n_embd (64,128,256,512,1024)")
    axis.add_argument(
        "--depths", type=_sizes, nargs="?", const=(), metavar="N,N", help="values of n_layer instead (2,4,8,16)"
    )
    parser.add_argument("--steps", type=count, metavar="N", help="steps to train at each size (3)")
    parser.add_argument("--seeds", type=count, metavar="N", help="initialisations at each size (4)")
    manifest_arguments(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the sizes as PNG; needs ratrain[plots]")
    json_argument(parser)


def _sizes(text: str) -> tuple[int, ...]:
    """Parses sizes in rising order, such as 64,128,256."""
    sizes = tuple(count(word) for word in text.split(","))
    if len(sizes) < 2 or list(sizes) != sorted(set(sizes)):
        raise argparse.ArgumentTypeError(f"expected two or more rising numbers, as in 64,128,256; got {text!r}")
    return sizes


def _coordcheck(args: argparse.Namespace) -> int:
    """Train a few steps at several widths: does every activation keep its size, as muP claims? 78 if it does not."""
    if args.plot and args.plot.suffix != ".png":
        raise UsageError(f"--plot {args.plot}: the figure is a PNG; expected a name that ends with .png")
    from ratrain.run.coordcheck import DEPTHS, SEEDS, STEPS, WIDTHS, check_coordinates, table, verdict

    axis = "width" if args.depths is None else "depth"
    sizes = (args.depths or DEPTHS) if axis == "depth" else (args.widths or WIDTHS)
    args.set = [*args.set, *_base(args, axis, sizes)]
    manifest, source = resolve_manifest(args.manifest, args)
    head_dim = manifest.model.head_dim
    if axis == "width" and (odd := [size for size in sizes if size % head_dim]):
        raise UsageError(f"--widths: {odd[0]} is not a multiple of the width of heads, n_embd / n_head = {head_dim}")
    draw = _drawer() if args.plot else None
    steps, seeds = args.steps or STEPS, args.seeds or SEEDS
    try:
        found = check_coordinates(manifest, axis=axis, sizes=sizes, steps=steps, seeds=seeds, say=_say)
    except ManifestError as error:
        raise located(error, source) from error
    if args.plot and draw:
        from ratrain.atomic import write_file

        write_file(args.plot, [draw(found)])
    if args.json:
        print_document(found.record())
    else:
        print(aligned_table(table(found)))
        print(f"\n{verdict(found)}" + (f"\n{args.plot}" if args.plot else ""))
    return Exit.BAD_MANIFEST if found.claimed and not found.flat else Exit.DONE


def _base(args: argparse.Namespace, axis: str, sizes: tuple[int, ...]) -> list[str]:
    """Returns overrides that make the smallest size the base, for the keys of model.base that are not set."""
    from ratrain.config.schema import READ_OF_BASE

    model = open_manifest(args.manifest, args)[0].tree.get("model", {})
    if not isinstance(model, dict):
        return []  # resolving the manifest tells the fault, here and below
    needs = READ_OF_BASE.get(str(model.get("parametrisation", "")), ())
    own = {key: size for key in ("n_embd", "n_head", "n_layer") if isinstance(size := model.get(key), int) and size > 0}
    if len(own) < 3:
        return []
    head_dim = max(1, own["n_embd"] // own["n_head"])
    if axis == "width":
        own |= {"n_embd": sizes[0], "n_head": max(1, sizes[0] // head_dim)}
    else:
        own["n_layer"] = sizes[0]
    given = model.get("base", {})
    return [f"model.base.{key}={own[key]}" for key in needs if isinstance(given, dict) and key not in given]


def _drawer():
    """Returns the function that draws a check. Raises UnavailableError without matplotlib: nothing is trained yet."""
    from ratrain.report.figures import coordinates_figure, require_matplotlib

    require_matplotlib()
    return coordinates_figure


def _say(text: str) -> None:
    print(f"ratrain: {text}", file=sys.stderr, flush=True)


COMMANDS: dict[str, Command] = {
    "coordcheck": Command(_arguments, _coordcheck),
}
