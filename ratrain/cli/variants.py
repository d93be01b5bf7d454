"""The commands list, show, diff, widen and schema."""

from __future__ import annotations

import argparse

from ratrain.cli.arguments import Command, json_argument, manifest_arguments, read_manifest, resolve_manifest
from ratrain.cli.printing.document import print_document
from ratrain.config.read import located
from ratrain.errors import ManifestError, MissingError


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="word in the id, title, file or a mechanism; several must all match"
    )
    json_argument(parser)


def _list(args: argparse.Namespace) -> None:
    """List every shipped variant and scale, or the variants that match all words."""
    from ratrain.config.catalogue import catalogue
    from ratrain.config.find import scales

    entries = [entry for entry in catalogue() if all(entry.has(word) for word in args.words)]
    if args.json:
        print_document([vars(entry) for entry in entries])
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
    json_argument(parser)


def _show(args: argparse.Namespace) -> None:
    """Show a manifest with every key resolved, and the origin of each value."""
    manifest, source = read_manifest(args.manifest, args)
    from ratrain.config.identity import recipe_hash
    from ratrain.config.render import located_keys, render

    if args.json:
        told = {"id": manifest.id, "recipe": recipe_hash(manifest), "keys": located_keys(manifest, source)}
        print_document({**told, "reference": manifest.origin})
        return
    print(render(manifest, source), end="")
    print(f"\n# recipe {recipe_hash(manifest)[:8]}")
    for key, text in manifest.origin.items():
        print(f"# the reference, {key}: {text}")


def _diff_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="a manifest")
    parser.add_argument("b", help="another manifest")
    manifest_arguments(parser)
    json_argument(parser)


def _diff(args: argparse.Namespace) -> None:
    """Show the keys in which two manifests differ, resolved."""
    from ratrain.config.render import diff

    rows = diff(read_manifest(args.a, args)[0], read_manifest(args.b, args)[0])
    if args.json:
        print_document({"a": args.a, "b": args.b, "keys": [{"key": key, "a": a, "b": b} for key, a, b in rows]})
        return
    for key, a, b in rows:
        print(f"{key}: {a!r} -> {b!r}")
    if not rows:
        print(f"{args.a} and {args.b} resolve to the same keys")


def _widen_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", help="the variant whose cost to match")
    manifest_arguments(parser)
    parser.add_argument(
        "--by", choices=("parameters", "flops"), default="parameters", help="cost to match (parameters)"
    )
    json_argument(parser)


def _widen(args: argparse.Namespace) -> None:
    """Print a manifest of the plain base, widened to the parameters or FLOPs of a variant: its control."""
    (variant, source), (base, _) = resolve_manifest(args.manifest, args), resolve_manifest(args.base or "gpt2", args)
    from ratrain.run.widen import text, widen

    try:
        found = widen(variant, base, by=args.by)
    except ManifestError as error:
        raise located(error, source) from error
    if args.json:
        told = {"of": variant.id, "base": base.id, "scale": variant.scale, "by": found.by, "goal": found.goal}
        told |= {"cost": found.cost, "cost_of_base": found.own, "mlp_ratio": found.manifest.model.mlp_ratio}
        print_document({**told, "manifest": text(found)})
    else:
        print(text(found), end="")


def _schema_arguments(parser: argparse.ArgumentParser) -> None:
    json_argument(parser, "as without it: the schema is a JSON document")


def _schema(_args: argparse.Namespace) -> None:
    """Print the JSON schema of manifests, for editors that complete and check TOML."""
    from ratrain.config.render import json_schema
    from ratrain.registry import optim_kinds, patch_kinds

    print_document(json_schema(patch_kinds().outlines(), optim_kinds().outlines()))


COMMANDS: dict[str, Command] = {
    "list": Command(_list_arguments, _list),
    "show": Command(_show_arguments, _show),
    "diff": Command(_diff_arguments, _diff),
    "widen": Command(_widen_arguments, _widen),
    "schema": Command(_schema_arguments, _schema),
}
