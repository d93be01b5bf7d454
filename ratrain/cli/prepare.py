"""`ratrain prepare`: turns text into token shards; prints progress and the manifest's keys on stderr."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain.cli.arguments import json_argument, share
from ratrain.cli.printing.document import print_document
from ratrain.config.recall import MIXTURE, RECALL
from ratrain.data.documents import SUFFIXES
from ratrain.data.hub import SETS
from ratrain.data.prepare import Progress, Summary, prepare
from ratrain.data.tokenizer import VOCAB
from ratrain.errors import UsageError

if TYPE_CHECKING:
    from ratrain.data.overlap import Overlap

_NAMED_TOKENS = 100_000_000  # default of a named set, as in the reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `ratrain prepare`."""
    names = ", ".join(("shakespeare", *SETS))
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="INPUT", help=f"{', '.join(SUFFIXES)} files, folders, or one of {names}"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the shards (of a named set: data/NAME)")
    parser.add_argument("--tokenizer", default="gpt2", choices=tuple(VOCAB), help="gpt2 (default) or shakespeare2k")
    parser.add_argument(
        "--val-fraction", type=float, default=0.01, metavar="F", help="share of validation documents (0.01)"
    )
    parser.add_argument(
        "--shard-tokens", type=int, default=100_000_000, metavar="N", help="tokens per file (100000000)"
    )
    parser.add_argument(
        "--field", default="text", metavar="NAME", help="field of a JSON line, column of a table (text)"
    )
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="stop after the document that reaches N; 0: all (named sets: 100000000)"
    )
    parser.add_argument(
        "--most-overlap", type=share, default=0.01, metavar="S",
        help="largest share of the validation text that may be training text as well (0.01); above it: exit 65",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (all cores)")
    parser.add_argument("--fresh", action="store_true", help="move the contents of DIR aside and start over")
    json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Prepares shards as the command line says; prints progress and the manifest's keys on stderr."""
    from ratrain.data.corpus import EMBEDDED

    name = str(args.inputs[0])
    if name == EMBEDDED and not args.inputs[0].exists():
        if len(args.inputs) > 1 or args.out is not None:
            raise UsageError(f"{EMBEDDED} is inside the package and needs no shards; leave out --out and other inputs")
        keys = _tell_keys(EMBEDDED, args.tokenizer)
        if args.json:
            print_document({"set": keys})
        return
    is_named = name in SETS and not args.inputs[0].exists()
    if args.out is None and not (is_named and len(args.inputs) == 1):
        raise UsageError("--out DIR is missing: the folder for the shards")
    out = args.out or Path("data") / name
    if str(out) in (*RECALL, MIXTURE):
        raise UsageError(f"--out {out}: data.source = {str(out)!r} is not a folder; expected another, as in data/{out}")
    line = _ProgressLine()
    try:
        summary = prepare(
            args.inputs,
            out,
            tokenizer=args.tokenizer,
            val_fraction=args.val_fraction,
            shard_tokens=args.shard_tokens,
            field=args.field,
            tokens=args.tokens if args.tokens is not None else _NAMED_TOKENS if is_named else 0,
            jobs=args.jobs,
            progress=line,
            fresh=args.fresh,
        )
    finally:
        line.end()
    _tell(summary)
    told = {**asdict(summary), "overlap": None, "set": None}
    if any(out.glob("*val*.bin")):
        told["overlap"] = asdict(_tell_overlap(out, args))
        told["set"] = _tell_keys(out, args.tokenizer)
    else:
        print(f"no validation shard: add a val_*.bin of your own to {out} before training on it", file=sys.stderr)
    if args.json:
        print_document(told)


def _tell(summary: Summary) -> None:
    for split, tokens in summary.tokens.items():
        documents, shards = summary.documents[split], summary.shards[split]
        print(f"{split}: {tokens:,} tokens, {documents:,} documents, {shards} shards", file=sys.stderr)
    if summary.skipped:
        print(f"skipped: {summary.skipped:,} records whose text is null", file=sys.stderr)


def _tell_overlap(out: Path, args: argparse.Namespace) -> Overlap:
    """Prints how much validation text is training text. Raises DataError above the accepted share."""
    from ratrain.config.schema import DataSection
    from ratrain.data.corpus import open_corpus
    from ratrain.data.source import require_separate, told_overlap

    section = DataSection(source=str(out), tokenizer=args.tokenizer)
    corpus = open_corpus(section, vocab_size=VOCAB[args.tokenizer])
    found = require_separate(corpus, args.most_overlap, key="--most-overlap")
    print(told_overlap(found), file=sys.stderr)
    return found


def _tell_keys(source: Path | str, tokenizer: str) -> dict[str, str | int]:
    """Prints the keys of a manifest that trains on `source`, and returns them."""
    keys = {"data.source": str(source), "data.tokenizer": tokenizer, "model.vocab_size": VOCAB[tokenizer]}
    print("use it: " + " ".join(f"--set {key}={value}" for key, value in keys.items()), file=sys.stderr)
    return keys


class _ProgressLine:
    """Prints progress on stderr: one line redrawn up to ten times a second on a terminal, else a line per second."""

    def __init__(self):
        self.is_terminal = sys.stderr.isatty()
        self.begun, self.next, self.is_open = time.monotonic(), 0.0, False

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + (0.1 if self.is_terminal else 1.0)
        counts = f"{progress.documents:,} documents  {progress.tokens:,} tokens"
        text = f"{progress.share:4.0%}  {counts}  {now - self.begun:.0f} s"
        print(f"\r\033[K{text}" if self.is_terminal else text, end="" if self.is_terminal else "\n", file=sys.stderr)
        sys.stderr.flush()
        self.is_open = self.is_terminal

    def end(self) -> None:
        if self.is_open:
            print(file=sys.stderr)
