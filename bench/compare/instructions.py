"""The instructions of a step, by the processor's own counter under perf, else by valgrind's callgrind."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.compare.arm import Arm
from bench.compare.worker import ArmError

_PERF = ("-e", "instructions:u", "-x", ",")


def instructions(arguments: Mapping[str, Any], source: Path | None, *, slow: bool, label: str = "") -> int | None:
    """Counts the instructions of a step in user space by perf; else, if `slow`, by callgrind, which takes minutes.

    None if neither is available. Raises ArmError.
    """
    # a random hash seed per process would change the order of sets and dicts
    given: dict[str, Any] = {
        "arguments": arguments, "source": source, "label": label, "environment": {"PYTHONHASHSEED": "0"},
    }  # fmt: skip
    if perf_counts():
        with Arm(**given) as arm:
            arm.ready()
            return (_by_perf(arm, 100) - _by_perf(arm, 50)) // 50  # the cost of a request is in both
    return _by_callgrind(given, 3) if slow and shutil.which("valgrind") else None


def perf_counts() -> bool:
    """Whether perf can read the processor's counter of instructions, which most virtual machines do not have."""
    if not shutil.which("perf"):
        return False
    tried = subprocess.run(["perf", "stat", *_PERF, "true"], capture_output=True, text=True, check=False)
    return tried.returncode == 0 and _read_perf(tried.stderr) is not None


def _by_perf(arm: Arm, n: int) -> int:
    perf = subprocess.Popen(["perf", "stat", *_PERF, "-p", str(arm.pid)], stderr=subprocess.PIPE, text=True)
    time.sleep(0.5)  # until it has attached
    arm.step(n)
    perf.send_signal(signal.SIGINT)
    found = _read_perf(perf.communicate()[1])
    if found is None:
        raise ArmError(f"{arm.label}: perf counted no instructions of process {arm.pid}")
    return found


def _read_perf(told: str) -> int | None:
    found = re.search(r"^(\d+),[^,]*,instructions", told, re.MULTILINE)
    return int(found[1]) if found else None


def _by_callgrind(given: Mapping[str, Any], n: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        words = ["valgrind", "--tool=callgrind", "--quiet", "--collect-atstart=no"]
        with Arm(**given, prefix=[*words, f"--callgrind-out-file={folder}/counted"]) as arm:
            arm.instructions(n)
        for file in sorted(Path(folder).iterdir()):
            found = re.search(r"^summary: (\d+)", file.read_text(errors="replace"), re.MULTILINE)
            if found and int(found[1]):
                return int(found[1]) // n
    raise ArmError(f"{arm.label}: callgrind left no count")
