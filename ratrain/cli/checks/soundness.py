"""The commands verify and audit: whether a mechanism, or any decoder, is sound."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ratrain.cli.arguments import Command, count, json_argument, read_manifest
from ratrain.cli.printing.document import print_document
from ratrain.errors import Exit, ManifestError, UsageError


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", help="a manifest, for instance of your own patch")
    parser.add_argument("--base", metavar="B", help="base model: gpt2 (default), modern")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="change one key")
    parser.add_argument(
        "--patches", action="append", default=[], metavar="DIR", type=Path, help="folder of patch files"
    )
    json_argument(parser)


def _verify(args: argparse.Namespace) -> int:
    """Run every contract on one manifest at a small size: causality, checkpoints, gradients, graphs, decoding, ..."""
    args.scale = None
    name = read_manifest(args.manifest, args)[0].id  # a refusal comes before torch is imported
    from ratrain.api import verify

    verdicts = []
    for verdict in verify(args.manifest, base=args.base, overrides=args.set, patches=args.patches):
        verdicts.append(verdict)
        if not args.json:
            state = "holds " if verdict.fault is None else "BROKEN"
            print(f"{state}  {verdict.seconds:5.1f} s  {verdict.claim}", flush=True)
            print("".join(f"        {line}\n" for line in (verdict.fault or "").splitlines()), end="")
    broken = sum(verdict.fault is not None for verdict in verdicts)
    if args.json:
        print_document({"id": name, "holds": not broken, "contracts": [asdict(verdict) for verdict in verdicts]})
    else:
        print(f"{name}: " + (f"{broken} contracts are broken" if broken else "every contract holds"))
    return Exit.BAD_MANIFEST if broken else Exit.DONE


def _audit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", metavar="FILE.py:NAME", help="a class or function that returns a model; or MODULE:NAME"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="K=V", help="an argument of NAME, or of its config class"
    )
    parser.add_argument(
        "--optimizer", metavar="FILE.py:FN", help="function of the model that returns its optimizer, or its groups"
    )
    parser.add_argument("--vocab", type=count, metavar="N", help="vocabulary size, if it cannot be inferred")
    parser.add_argument("--length", type=count, metavar="N", help="tokens per input (its maximum, up to 64)")
    json_argument(parser)


def _audit(args: argparse.Namespace) -> int:
    """Check any decoder for leaks, dead parameters and wrong decay; exit code 65 if it is unsound."""
    from ratrain.audit.audit import audit
    from ratrain.audit.source import find_target
    from ratrain.config.parse import parse_override

    try:
        arguments = {name: value for word in args.set for name, value in parse_override(word).tree.items()}
    except ManifestError as error:
        raise UsageError(str(error.faults[0])) from None
    target = find_target(args.target)
    optimizer = find_target(args.optimizer) if args.optimizer else None
    found = audit(target, arguments, optimizer=optimizer, vocab_size=args.vocab, length=args.length)
    if args.json:
        print_document(asdict(found))
    else:
        print(found.page())
    return Exit.DONE if found.sound else Exit.BAD_DATA


COMMANDS: dict[str, Command] = {
    "verify": Command(_verify_arguments, _verify),
    "audit": Command(_audit_arguments, _audit),
}
