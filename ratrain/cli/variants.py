"""The commands list, show, diff, check, smoke, widen, verify, audit and schema."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain.cli.arguments import (
    Command,
    buildable,
    count,
    manifest_arguments,
    read_manifest,
    resolve_manifest,
)
from ratrain.cli.printing.tables import aligned
from ratrain.config.read import located
from ratrain.errors import Exit, Fault, ManifestError, MissingError, RatrainError, UsageError

if TYPE_CHECKING:
    from ratrain.config.read import Source
    from ratrain.config.schema import Manifest


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="word in the id, title, file or a mechanism; several must all match"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _list(args: argparse.Namespace) -> None:
    """List every shipped variant and scale, or the variants that match all words."""
    from ratrain.config.catalogue import catalogue
    from ratrain.config.find import scales

    entries = [entry for entry in catalogue() if all(entry.has(word) for word in args.words)]
    if args.json:
        print(json.dumps([vars(entry) for entry in entries], indent=1))
        return
    if not entries:
        raise MissingError(f"no variant has {' and '.join(map(repr, args.words))} in its id, title, file or mechanisms")
    old = [entry for entry in entries if not args.words and entry.has("manifests/legacy/")]
    entries = [entry for entry in entries if entry not in old]
    width = max(len(entry.id) for entry in entries)
    for entry in entries:
        mechanisms = [kind if kind == name else f"{name} ({kind})" for name, kind in entry.patches]
        mechanisms += [f"weights pruned by {entry.prune}"] if entry.prune else []
        twin = f"  (same as {entry.same_as})" if entry.same_as else ""
        print(f"{entry.id:{width}}  {entry.title}{twin}  [{', '.join(mechanisms) or '-'}]  {entry.file}")
        if entry.fault:
            print(f"{'':{width}}  broken: {entry.fault}")
    if old:
        print(f"\nold studies: {len(old)} more, as intended and as run; ratrain list legacy shows them")
    print(f"\nscales: {', '.join(scales())}")
    print("unified_ra is a gated relabelling of standard attention: the same function class as GPT-2.")


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", help="path, file name or id of a manifest")
    manifest_arguments(parser)


def _show(args: argparse.Namespace) -> None:
    """Show a manifest with every key resolved, and the origin of each value."""
    manifest, source = read_manifest(args.manifest, args)
    from ratrain.config.identity import recipe_hash
    from ratrain.config.render import render

    print(render(manifest, source), end="")
    print(f"\n# recipe {recipe_hash(manifest)[:8]}")
    for key, text in manifest.origin.items():
        print(f"# the reference, {key}: {text}")


def _diff_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="a manifest")
    parser.add_argument("b", help="another manifest")
    manifest_arguments(parser)


def _diff(args: argparse.Namespace) -> None:
    """Show the keys in which two manifests differ, resolved."""
    from ratrain.config.render import diff

    rows = diff(read_manifest(args.a, args)[0], read_manifest(args.b, args)[0])
    for key, a, b in rows:
        print(f"{key}: {a!r} -> {b!r}")
    if not rows:
        print(f"{args.a} and {args.b} resolve to the same keys")


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifests", nargs="*", help="manifests to check (all shipped ones)")
    manifest_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document")


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
        print("[]")
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
        print(json.dumps([row.record() for row in checked], indent=1))
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
    parser.add_argument("--json", action="store_true", help="one JSON line per manifest")


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
            print(json.dumps(record) if args.json else aligned(cells, widths), flush=True)
        except RatrainError as error:
            failure(name, error)


def _widen_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", help="the variant whose cost to match")
    manifest_arguments(parser)
    parser.add_argument(
        "--by", choices=("parameters", "flops"), default="parameters", help="cost to match (parameters)"
    )


def _widen(args: argparse.Namespace) -> None:
    """Print a manifest of the plain base, widened to the parameters or FLOPs of a variant: its control."""
    (variant, source), (base, _) = resolve_manifest(args.manifest, args), resolve_manifest(args.base or "gpt2", args)
    from ratrain.model.widen import text, widen

    try:
        print(text(widen(variant, base, by=args.by)), end="")
    except ManifestError as error:
        raise located(error, source) from error


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", help="a manifest, for instance of your own patch")
    parser.add_argument("--base", metavar="B", help="base model: gpt2 (default), modern")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="change one key")
    parser.add_argument(
        "--patches", action="append", default=[], metavar="DIR", type=Path, help="folder of patch files"
    )


def _verify(args: argparse.Namespace) -> int:
    """Run every contract on one manifest at a small size: causality, checkpoints, gradients, graphs, decoding, ..."""
    args.scale = None
    name = read_manifest(args.manifest, args)[0].id  # a refusal comes before torch is imported
    from ratrain.api import verify

    broken = 0
    for verdict in verify(args.manifest, base=args.base, overrides=args.set, patches=args.patches):
        state = "holds " if verdict.fault is None else "BROKEN"
        print(f"{state}  {verdict.seconds:5.1f} s  {verdict.claim}", flush=True)
        if verdict.fault is not None:
            broken += 1
            print("\n".join(f"        {line}" for line in verdict.fault.splitlines()))
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
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _audit(args: argparse.Namespace) -> int:
    """Check any decoder for leaks, dead parameters and wrong decay; exit code 65 if it is unsound."""
    from dataclasses import asdict

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
    print(json.dumps(asdict(found), indent=1) if args.json else found.page())
    return Exit.DONE if found.sound else Exit.BAD_DATA


def _schema_arguments(_parser: argparse.ArgumentParser) -> None:
    pass


def _schema(_args: argparse.Namespace) -> None:
    """Print the JSON schema of manifests, for editors that complete and check TOML."""
    from ratrain.config.render import json_schema
    from ratrain.registry import optim_kinds, patch_kinds

    print(json.dumps(json_schema(patch_kinds().outlines(), optim_kinds().outlines()), indent=1))


COMMANDS: dict[str, Command] = {
    "list": Command(_list_arguments, _list),
    "show": Command(_show_arguments, _show),
    "diff": Command(_diff_arguments, _diff),
    "check": Command(_check_arguments, _check),
    "smoke": Command(_smoke_arguments, _smoke),
    "widen": Command(_widen_arguments, _widen),
    "verify": Command(_verify_arguments, _verify),
    "audit": Command(_audit_arguments, _audit),
    "schema": Command(_schema_arguments, _schema),
}
