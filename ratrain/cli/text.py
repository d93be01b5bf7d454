"""Commands about text: prepare tokenizes it, data describes the tokens, sample draws text from a run."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain.cli.arguments import Command, json_argument, natural
from ratrain.cli.printing.document import print_document, print_line

if TYPE_CHECKING:
    from ratrain.data.describe import Description


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    from ratrain.cli.prepare import add_arguments

    add_arguments(parser)


def _prepare(args: argparse.Namespace) -> None:
    """Turn local text or a named data set into token shards for a manifest's data.source."""
    from ratrain.cli.prepare import run

    run(args)


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FOLDER", help="a folder of token shards, or shakespeare")
    parser.add_argument("--tokenizer", metavar="NAME", help="gpt2 or shakespeare2k, if the folder does not say (gpt2)")
    json_argument(parser)


def _data(args: argparse.Namespace) -> None:
    """Tell tokens, documents, lengths, a sample, and validation text that is also training text."""
    from ratrain.data.describe import describe

    found = describe(args.source, tokenizer=args.tokenizer)
    if args.json:
        print_line(asdict(found))
    else:
        print(_told(found))


def _told(found: Description) -> str:
    from ratrain.cli.printing.tables import table
    from ratrain.data.source import told_overlap, told_places

    head = ("split", "tokens", "bytes of text", "documents", "shortest", "median", "longest")
    rows = [
        (name, *(f"{number:,}" for number in (s.tokens, s.bytes, s.documents, s.shortest, s.median, s.longest)))
        for name, s in found.splits.items()
    ]
    lines = [f"{found.source}: tokenizer {found.tokenizer}, fingerprint {found.fingerprint[:16]}", table([head, *rows])]
    lines += [told_overlap(found.overlap), *([told_places(found.overlap)] if found.overlap.places else [])]
    return "\n".join([*lines, "the first training document begins:", *_indented(found.sample)])


def _indented(text: str) -> list[str]:
    return [f"  | {line}" for line in text.strip().splitlines()]


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number from 0 up, got {text!r}")
    return value


def _sample_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run folder, a prefix of its name, or @last")
    parser.add_argument("--prompt", default="", help="text to continue (by default a new document)")
    parser.add_argument("--tokens", type=natural, default=200, metavar="N", help="tokens to draw (200)")
    parser.add_argument(
        "--temperature", type=_temperature, default=0.8, metavar="T", help="0: the likeliest token (0.8)"
    )
    parser.add_argument(
        "--top-k", type=natural, default=50, metavar="K", help="draw among the K likeliest tokens; 0: all (50)"
    )
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="seed of the draws (0)")
    parser.add_argument("--stats", action="store_true", help="KV cache bytes per token, and tokens/s, on stderr")
    json_argument(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="parent of the run folders (runs)"
    )
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, cuda:N")


def _sample(args: argparse.Namespace) -> None:
    """Draw text from the newest checkpoint of a run."""
    from ratrain.run.sample import Decoded, sample

    costs: list[Decoded] = []
    pieces = []
    for piece in sample(
        args.run,
        args.prompt,
        root=args.out,
        count=args.tokens,
        temperature=args.temperature,
        top_k=args.top_k or None,
        seed=args.seed,
        device=args.device,
        warn=lambda message: print(f"warning: {message}", file=sys.stderr),
        on_stats=costs.append,
    ):
        pieces.append(piece)
        if not args.json:
            print(piece, end="", flush=True)
    if args.json:
        told = {"run": args.run, "prompt": args.prompt, "text": "".join(pieces), "seed": args.seed}
        print_document({**told, **({"stats": asdict(costs[0])} if args.stats else {})})
        return
    print()
    if args.stats:
        print(costs[0], file=sys.stderr)


COMMANDS: dict[str, Command] = {
    "prepare": Command(_prepare_arguments, _prepare),
    "data": Command(_data_arguments, _data),
    "sample": Command(_sample_arguments, _sample),
}
