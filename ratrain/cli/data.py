"""`ratrain data FOLDER`: what is in a corpus?"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from ratrain.cli.arguments import Command

if TYPE_CHECKING:
    from ratrain.data.describe import Description


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FOLDER", help="a folder of token shards, or shakespeare")
    parser.add_argument("--tokenizer", metavar="NAME", help="gpt2 or shakespeare2k, if the folder does not say (gpt2)")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _data(args: argparse.Namespace) -> None:
    """Tell tokens, documents, lengths, a sample, and validation text that is also training text."""
    from ratrain.data.describe import describe

    found = describe(args.source, tokenizer=args.tokenizer)
    print(json.dumps(asdict(found)) if args.json else _told(found))


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


COMMANDS: dict[str, Command] = {"data": Command(_arguments, _data)}
