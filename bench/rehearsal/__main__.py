"""Rehearses a step for a GPU: compiles the train step of variants for an absent card, and counts its work.

    python -m bench.rehearsal [VARIANT ...] [--scope block,model] [--precision bf16,amp_bf16] [--attention cudnn,ours]
                             [--batch N] [--kernels] [--json] [--record]

Of each case: graph breaks, recompiles, waits of the host for the device, operations whose fakes differ from the tensors
they return (all faults); launches and bytes of a step, compared with bench/rehearsal/bounds.json; and the time of a
roofline model on an H100 and an H200. No number is computed and no kernel runs: half a minute for the first variant, a
few seconds for each other. Exits with 1 on a fault, with 69 without a C++ compiler.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bench.gpu.ledger import fault
from bench.rehearsal import bounds, guard
from bench.rehearsal.card import CARDS


def main(words: Sequence[str] | None = None) -> int:
    args = _arguments().parse_args(words)
    if unknown := sorted({*args.attention.split(",")} - {"cudnn", "flash", "efficient", "ours"}):
        print(f"--attention {','.join(unknown)}: expected some of cudnn, flash, efficient, ours", file=sys.stderr)
        return 2
    try:
        guard.load()
    except RuntimeError as error:
        print(f"rehearse: {error}", file=sys.stderr)
        return 69
    from bench.rehearsal.step import Rehearsal

    rehearsal, began = Rehearsal(CARDS["h200"]), time.monotonic()
    if args.rest is not None:
        return _rest(rehearsal, args.rest)
    if not args.json:
        print(_HEAD)
    failed, cases, known = 0, _cases(args), bounds.read()
    for case in cases:
        row = _row(rehearsal, case, {} if args.record else known)
        failed += bool(row["faults"])
        _say(row, args)
        if args.record and "launches" in row:
            bounds.write(row)  # at once: an interrupted session keeps its figures
    print(f"{len(cases)} cases, {failed} with faults, {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 1 if failed else 0


def _cases(args: argparse.Namespace) -> list[Any]:
    from bench.rehearsal.step import Case
    from ratrain.config.catalogue import catalogue

    names = args.variant or [entry.id for entry in catalogue() if entry.same_as is None]
    axes = (args.precision.split(","), args.scope.split(","), args.attention.split(","), names)
    return [
        Case(name, precision, scope, attention, batch=args.batch, scale=args.scale, keys=tuple(args.set))
        for precision, scope, attention, name in itertools.product(*axes)
    ]


def _row(rehearsal: Any, case: Any, known: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures and faults of a case, with launches and bytes above its bound; its error if it fails."""
    try:
        step = rehearsal.step(case)
    except Exception as error:  # of any kind: the next case is not affected
        return {"case": str(case), "faults": [fault(error)]}
    model = {name: _modelled(step, card) for name, card in CARDS.items()}
    return {**step.record(), "faults": step.faults + bounds.exceeded(step, known), "model": model}


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", nargs="*", help="manifests, by id or path (all that ship and are no twins)")
    parser.add_argument("--precision", default="bf16", metavar="A,B", help="bf16, amp_bf16 or fp32 (bf16)")
    parser.add_argument("--scope", default="block", metavar="A,B", help="what is one graph: block, model (block)")
    parser.add_argument("--attention", default="cudnn", metavar="A,B", help="cudnn, flash, efficient, ours (cudnn)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="sequences in the micro-batch (16)")
    parser.add_argument("--scale", default="gpt2_124m", help="a manifest of manifests/scale (gpt2_124m)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="laid over each manifest")
    parser.add_argument("--kernels", action="store_true", help="each kernel of each step as well")
    parser.add_argument(
        "--rest",
        nargs="?",
        const="",
        metavar="PART",
        help="other CUDA branches in place of steps: those called PART ...",
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON a case in place of a table")
    parser.add_argument("--record", action="store_true", help="launches and bytes become the bounds of these cases")
    return parser


def _rest(rehearsal: Any, part: str) -> int:
    from bench.rehearsal.rest import rehearse

    failed = 0
    for name, faults in rehearse(rehearsal, part):
        print(
            "\n".join([f"{'FAULT' if faults else 'ok':6}{name}", *(f"      {fault}" for fault in faults)]), flush=True
        )
        failed += bool(faults)
    return 1 if failed else 0


def _modelled(step: Any, card: Any) -> dict[str, float]:
    """Returns milliseconds by part and in total, and tokens/s."""
    from bench.rehearsal.roofline import TUNED, model

    plain = model(step.work, step.tokens, card)
    tuned = model(step.work, step.tokens, card, products=TUNED)
    found = {name: round(1e3 * seconds, 3) for name, seconds in plain.seconds.items()}
    found |= {"ms": round(1e3 * plain.total, 3), "tokens_per_s": round(plain.tokens_per_second)}
    return found | {"tuned_ms": round(1e3 * tuned.total, 3), "tuned_tokens_per_s": round(tuned.tokens_per_second)}


_HEAD = f"{'case':52} {'graphs':>6} {'launches':>8} {'GB':>6}  {'H100 ms':>8} {'H200 ms':>8} {'k tok/s':>8}"


def _say(row: dict[str, Any], args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps({name: value for name, value in row.items() if args.kernels or name != "work"}), flush=True)
        return
    print("\n".join(_lines(row, args.kernels)), flush=True)


def _lines(row: dict[str, Any], kernels: bool) -> Iterator[str]:
    if "model" in row:
        h100, h200 = row["model"]["h100"], row["model"]["h200"]
        yield (
            f"{row['case']:52} {row['graphs']:6} {row['launches']:8} {row['bytes'] / 1e9:6.2f}  {h100['ms']:8.2f} "
            f"{h200['ms']:8.2f} {h200['tokens_per_s'] / 1e3:8.0f}"
        )
        if kernels:
            yield "    H200 ms: " + ", ".join(f"{part} {h200[part]:.2f}" for part in list(h200)[:6])
            for one in sorted(row["work"], key=lambda one: -one["bytes"]):
                gflop = f"{one['flops'] / 1e9:9.1f} GFLOP" if one["flops"] else ""
                yield f"    {one['count']:4} x {one['name'][:100]:100} {one['bytes'] / 1e6:9.1f} MB {gflop}"
    else:
        yield row["case"]
    yield from (f"    FAULT: {fault}" for fault in row["faults"])


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # torch crashes when it frees the last fakes of an absent device
