"""Kept results: a line of bench/history/<machine>.jsonl for each suite that ran with RECORD=1."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).parent


def record(suite: str, rows: dict[str, Any], *, against: str = "") -> None:
    """Appends the results of `suite`, with date, commit, machine and torch; does nothing unless RECORD is set.

    `against` is the commit whose cost is 1, if that is not an arm among the rows.
    """
    if not os.environ.get("RECORD"):
        return
    line = {
        "suite": suite,
        "date": date.today().isoformat(),
        "commit": commit(),
        **({"against": against} if against else {}),
        "machine": machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    with (_FOLDER / f"{file_name()}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def file_name() -> str:
    """Returns the file name of this machine's results, without an ending."""
    return re.sub(r"[^a-z0-9]+", "-", machine().lower()).strip("-")


def machine() -> str:
    """Returns the name of the GPU, else of the CPU with its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def commit() -> str:
    """Returns the commit, with -dirty if tracked files are edited, other than the results that benches write."""
    edited = _git("status", "--porcelain", "--untracked-files=no", ":/", ":!/bench/history", ":!/docs/performance")
    return _git("describe", "--always") + ("-dirty" if edited else "")


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=_FOLDER.parent, check=False)
    except OSError:  # no git, as on a lent machine
        return ""
    return done.stdout.strip()
