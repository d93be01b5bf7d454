"""Checks and times the kernels on this GPU, then whole train steps. Meant to take under eight minutes.

    python3 -m bench.gpu.check [--part kernels|steps] [--out DIR] [--write-tuned]

Kernels: each op in fp32, fp16 and bf16 against float64; tile sizes raced; times against torch's own attention and loss.
Steps: every variant at GPT-2 124M, T 1024, bf16, in rounds with V0. Each figure is a line of <out>/<gpu>.jsonl as soon
as it is known; at the end a Markdown table is written beside it. Exits with 1 if a result is wrong, with 69 without a
GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from bench.gpu.ledger import Ledger, table
from bench.history import record

Rows = list[dict[str, Any]]


def main(words: Sequence[str] | None = None) -> int:
    args = _arguments().parse_args(words)
    if not (args.rehearse or torch.cuda.is_available()):
        print(f"torch {torch.__version__} sees no GPU here; --rehearse goes through it all on a CPU", file=sys.stderr)
        return 69
    out = Path(args.out)
    ledger = Ledger(out / f"{record.file_name()}.jsonl", until=60 * args.minutes)
    ledger.tell("machine", machine=record.machine(), torch=torch.__version__, date=date.today().isoformat(),
                commit=record.commit())  # fmt: skip
    if args.part in (None, "kernels"):
        _kernels(args, ledger)
    if args.part in (None, "steps"):
        ledger.keep("steps", _steps(args, ledger))
    tables = [f"# {record.machine()}, torch {torch.__version__}, {date.today()}"]
    tables += [f"## {part}\n\n{table(rows)}" for part, rows in ledger.rows.items()]
    ledger.file.with_suffix(".md").write_text("\n\n".join(tables) + "\n")
    checks = ledger.rows.get("checks", [])
    wrong = [row for row in checks if not row.get("ok")]
    print(f"\n{ledger.file}, {ledger.file.with_suffix('.md')}")
    print(f"{len(wrong)} wrong of {len(checks)} checks, {ledger.seconds:.0f} s")
    return 1 if wrong else 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("kernels", "steps"), help="one of the two (both)")
    parser.add_argument("--only", metavar="A,B", help="manifests whose steps are timed (all)")
    parser.add_argument("--out", default=".gpu", help="where results go (.gpu, which git ignores)")
    parser.add_argument("--lanes", type=int, default=10, metavar="N", help="tiles raced against each kernel's own (10)")
    parser.add_argument("--write-tuned", action="store_true", help="keep the fastest tiles, in kernels/tuned and --out")
    parser.add_argument("--minutes", type=float, default=7.0, help="variants not compiled by then are left out (7)")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a CPU, by Triton's interpreter: no figures")
    return parser


def _kernels(args: argparse.Namespace, ledger: Ledger) -> None:
    from bench.gpu import inputs, kernels, races, timing

    setting = inputs.REHEARSAL if args.rehearse else inputs.Setting()
    ledger.keep("checks", kernels.checks(args.rehearse))
    raced = ledger.keep("races", races.race(setting, lanes=0 if args.rehearse else args.lanes))
    if args.write_tuned:
        _keep_tiles(raced, Path(args.out))
    ledger.keep("peaks", kernels.peaks(args.rehearse))
    ledger.keep("kernels", timing.time_all(setting))


def _keep_tiles(raced: Rows, out: Path) -> None:
    """Writes the fastest tiles as this architecture's, with a copy in the folder of results."""
    from ratrain.kernels.tuning import TUNED, architecture, tuned, write_tuned

    table = tuned(architecture())
    for row in raced:
        if "tile" in row:
            op, phase, size = row["kernel"].split(" ", 2)
            table[op][phase][size] = row["tile"]
    write_tuned(architecture(), table)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"tuned-{architecture()}.json").write_text((TUNED / f"{architecture()}.json").read_text())


def _steps(args: argparse.Namespace, ledger: Ledger) -> Iterator[dict[str, Any]]:
    from bench.gpu import steps  # late: the kernels' part needs none of its packages

    recipe = steps.REHEARSAL if args.rehearse else steps.FULL
    names = args.only.split(",") if args.only else steps.NAMES[: 2 if args.rehearse else None]
    yield from steps.time_steps(names, recipe, deadline=time.monotonic() + ledger.until - ledger.seconds - 60)


if __name__ == "__main__":
    sys.exit(main())
