"""The first minutes on a GPU: checks correctness, measures speed, and collects data for the next optimisations.

    python3 -m bench.gpu.first --call 1 [--out DIR] [--until S]      then the same with --call 2

Two calls of at most 420 s and 300 s; the second finds the code that the first compiled, in .gpu/cache. Each figure is a
line of <out>/first.jsonl as soon as it is known, and a part that fails or is late affects no other. Needs python3,
torch, triton, numpy and tiktoken; further packages missing on a bare machine come from .gpu/site, which
bench/gpu/carry.py fills. NANOGPT names a folder with nanoGPT's model.py, to compare with V0. `--rehearse` runs every
part on a CPU, at tiny sizes. Exits with 1 if a result is wrong or missing, with 69 without a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SITE, CACHE = ROOT / ".gpu" / "site", ROOT / ".gpu" / "cache"
sys.path.append(str(SITE))  # last: installed packages take precedence
for name, folder in {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "XDG_CACHE_HOME": "xdg",
}.items():
    os.environ.setdefault(name, str(CACHE / folder))

import torch  # noqa: E402

from bench.gpu.ledger import Ledger, table  # noqa: E402

Rows = Iterable[dict[str, Any]]

# parts of each call in order: the seconds expected on an H100 with 16 cores, and in a rehearsal on two
CALLS: dict[int, dict[str, tuple[float, float]]] = {
    1: {
        "env": (5, 3),
        "peaks": (5, 2),
        "products": (15, 2),
        "checks": (110, 3),
        "full": (40, 5),
        "steps_16": (100, 15),
        "profile": (15, 5),
        "loss": (15, 2),
        "steps_64": (70, 30),
    },
    2: {
        "env": (5, 3),
        "kernels": (40, 3),
        "decode": (15, 3),
        "steps_32": (60, 20),
        "train": (60, 15),
        "whole": (60, 15),
        "pairs": (50, 30),
    },
}
LIMIT = {1: 420.0, 2: 300.0}


def main(words: Sequence[str] | None = None) -> int:
    args = _arguments().parse_args(words)
    if not (args.rehearse or torch.cuda.is_available()):
        print(f"torch {torch.__version__} sees no GPU here; --rehearse goes through it all on a CPU", file=sys.stderr)
        return 69
    expected = {part: seconds[args.rehearse] for part, seconds in CALLS[args.call].items()}
    if args.parts:
        every = {part: seconds[args.rehearse] for parts in CALLS.values() for part, seconds in parts.items()}
        expected = {part: every.get(part, 0.0) for part in args.parts.split(",")}
    known = _parts(args)
    if unknown := [part for part in expected if part not in known]:
        print(f"--parts {','.join(unknown)}: expected some of {', '.join(known)}", file=sys.stderr)
        return 2
    until = args.until or LIMIT[args.call]
    print(f"call {args.call}: {sum(expected.values()):.0f} s expected, of {until:.0f}")
    print("\n".join(f"  {part:10} {seconds:5.0f} s" for part, seconds in expected.items()), flush=True)
    ledger = Ledger(Path(args.out) / "first.jsonl", until=until)
    ledger.run({part: known[part] for part in expected}, expected)
    text = "\n\n".join(f"## {part}\n\n{table(rows)}" for part, rows in ledger.rows.items())
    (Path(args.out) / f"first-{args.call}.md").write_text(text + "\n")
    checks = [*ledger.rows.get("checks", []), *ledger.rows.get("full", [])]
    wrong = [row for row in checks if not row.get("ok", False)]
    failed = [
        row for part, rows in ledger.rows.items() if part not in ("checks", "full") for row in rows if "why" in row
    ]
    print(f"{len(wrong)} wrong of {len(checks)} checks, {len(failed)} figures missing, {ledger.seconds:.0f} s")
    return 1 if wrong or failed else 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--call", type=int, choices=(1, 2), default=1, help="which half (1)")
    parser.add_argument("--out", default=".gpu/out", help="where figures go (.gpu/out, which git ignores)")
    parser.add_argument("--until", type=float, metavar="S", help="seconds after which no part begins (420 and 300)")
    parser.add_argument("--parts", metavar="A,B", help="some parts, of either call, in place of a call's")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a CPU: does it all come to its end?")
    return parser


def _parts(args: argparse.Namespace) -> dict[str, Callable[[], Rows]]:
    """Returns every part by name.

    A part imports its module when it is called, so that a missing package costs only that part.
    """
    small = args.rehearse

    def of(module: str, part: str, *arguments: object) -> Callable[[], Rows]:
        return lambda: getattr(importlib.import_module(f"bench.gpu.{module}"), part)(*arguments)

    parts = {"env": of("kernels", "environment")}
    parts |= {
        name: of("kernels", name, small)
        for name in ("peaks", "products", "checks", "full", "kernels", "loss", "decode")
    }
    parts["profile"] = of("turns", "profile", small, Path(args.out))
    # autotune by --parts alone: it would not fit into a call
    parts |= {name: of("turns", name, small) for name in ("whole", "autotune")}
    parts |= {name: of("training", name, small) for name in ("train", "pairs")}
    return parts | {f"steps_{batch}": of("turns", "steps", batch, small) for batch in (16, 32, 64)}


if __name__ == "__main__":
    sys.exit(main())
