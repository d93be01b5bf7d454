"""Starts gang.py, and reads what its runs state."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

KEYS = (
    *("compile.scope=off", "train.budget.steps=30", "train.batch=8", "train.micro_batch=2", "log.every=5"),
    *("eval.every=10", "eval.windows=7", "checkpoint.every=10"),
)


def run_gang(*tasks, dtype="float32", name="v9"):
    def argv(out, overrides):
        sets = [word for key in (*KEYS, *overrides) for word in ("--set", key)]
        return [name, "--scale", "tiny", "--device", "cpu", *sets, "--out", str(out)]

    faults = [fault and [*fault, signal.SIGTERM][:3] for *_, fault in tasks]
    words = [[count, argv(out, keys), fault] for (count, out, keys, _), fault in zip(tasks, faults, strict=True)]
    program = Path(__file__).with_name("gang.py")
    done = subprocess.run(
        [sys.executable, str(program), json.dumps(words), dtype], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [{**told, "said": done.stderr} for told in json.loads(done.stdout)]


def losses(folder, event="Window"):
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [loss for e in lines if e["event"] == event for loss in e.get("losses", [e.get("loss")])]
