"""Are the kernels right on this GPU, and how fast? Then whole train steps. Meant to take under eight minutes.

    python3 bench/gpu_check.py [--part kernels|steps] [--out DIR] [--write-tuned]

Kernels: each op in fp32, fp16 and bf16 against float64; tile sizes raced; times beside torch's own attention and loss.
Steps: every variant at GPT-2 124M, T 1024, bf16, in rounds with V0. Writes a line of JSON to <out>/<gpu>.jsonl and a
Markdown table beside it. Exits with 1 where a result is wrong, with 69 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # a bare clone: nothing is installed

import torch  # noqa: E402

Rows = list[dict[str, Any]]


def main(words: Sequence[str] | None = None) -> int:
    args = _arguments().parse_args(words)
    if not (args.rehearse or torch.cuda.is_available()):
        print(f"torch {torch.__version__} sees no GPU here; --rehearse goes through it all on a CPU", file=sys.stderr)
        return 69
    found: dict[str, Rows] = {}
    began = time.monotonic()
    try:
        if args.part in (None, "kernels"):
            found |= _kernels(args)
        if args.part in (None, "steps"):
            found["steps"] = list(_told(_steps(args, began)))
    finally:
        seconds = time.monotonic() - began
        _write(found, Path(args.out), seconds)
    wrong = [row for row in found.get("checks", []) if not row["ok"]]
    print(f"\n{len(wrong)} wrong of {len(found.get('checks', []))} checks, {seconds:.0f} s")
    return 1 if wrong else 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("kernels", "steps"), help="one of the two (both)")
    parser.add_argument("--only", metavar="A,B", help="manifests whose steps are timed (all)")
    parser.add_argument("--out", default=str(HERE / "history"), help="where results go (bench/history)")
    parser.add_argument("--lanes", type=int, default=10, metavar="N", help="tiles raced against each kernel's own (10)")
    parser.add_argument("--write-tuned", action="store_true", help="keep the fastest tiles, in kernels/tuned and --out")
    parser.add_argument("--minutes", type=float, default=7.0, help="variants not compiled by then are left out (7)")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a CPU, by Triton's interpreter: no figures")
    return parser


def _kernels(args: argparse.Namespace) -> dict[str, Rows]:
    import gpu_inputs
    import gpu_right
    import gpu_timed

    setting = gpu_inputs.REHEARSAL if args.rehearse else gpu_inputs.Setting()
    found: dict[str, Rows] = {}
    checks = [(one, setting) for one in gpu_right.all_checks(setting)]
    found["checks"] = list(_told(gpu_inputs.spread(gpu_right.check, checks, setting)))
    found["races"] = list(_told(gpu_timed.race(setting, lanes=0 if args.rehearse else args.lanes)))
    if args.write_tuned:
        _keep_tiles(found["races"], Path(args.out))
    peak = gpu_timed.peaks(setting)
    found["peaks"] = [{"tflops": round(peak.flops / 1e12, 1), "GB_per_s": round(peak.bytes / 1e9)}]
    found["kernels"] = list(_told(gpu_timed.time_all(setting, peak)))
    return found


def _keep_tiles(races: Rows, out: Path) -> None:
    """The winners become this architecture's tiles; a copy goes where the results go."""
    from ratrain.kernels.tuning import TUNED, architecture, tuned, write_tuned

    table = tuned(architecture())
    for row in races:
        if "tile" in row:
            op, phase, size = row["kernel"].split(" ", 2)
            table[op][phase][size] = row["tile"]
    write_tuned(architecture(), table)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"tuned-{architecture()}.json").write_text((TUNED / f"{architecture()}.json").read_text())


def _steps(args: argparse.Namespace, began: float) -> Iterator[dict[str, Any]]:
    try:
        import gpu_steps
    except ImportError as error:  # the kernels' part needs none of them
        yield {"variant": "all", "why": f"{error}; pip install -c constraints.txt -e . gives what steps need"}
        return
    recipe = gpu_steps.REHEARSAL if args.rehearse else gpu_steps.FULL
    names = args.only.split(",") if args.only else gpu_steps.NAMES[: 2 if args.rehearse else None]
    yield from gpu_steps.time_steps(names, recipe, deadline=began + 60 * args.minutes - 90)


def _told(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Passes rows on, each on a line as it comes."""
    for row in rows:
        words = [f"{name} {_short(value)}" for name, value in row.items() if value not in ("", None)]
        print("  ".join(words), flush=True)
        yield row


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1e-2 else str(value)


def _write(found: dict[str, Rows], out: Path, seconds: float) -> None:
    import history

    out.mkdir(parents=True, exist_ok=True)
    line = {"suite": "gpu_check", "date": date.today().isoformat(), "commit": _commit(), "machine": history.machine()}
    line |= {"torch": torch.__version__, "seconds": round(seconds), **found}
    name = history.file_name()
    with (out / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    tables = [f"# {history.machine()}, torch {torch.__version__}, {line['date']}"]
    tables += [f"## {part}\n\n{_table(rows)}" for part, rows in found.items() if rows]
    (out / f"{name}.md").write_text("\n\n".join(tables) + "\n")
    print(f"\n{out / name}.jsonl, {out / name}.md")


def _commit() -> str:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE)
    except OSError:
        return ""
    return done.stdout.strip()


def _table(rows: Rows) -> str:
    heads = list(dict.fromkeys(name for row in rows for name in row))
    lines = [heads, ["---"] * len(heads), *([_short(row.get(name, "")) for name in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
