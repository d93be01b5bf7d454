"""Sets how long OpenMP threads spin while they wait, before torch loads OpenMP.

By default they spin for milliseconds before they sleep. If other programs run, this takes CPU time from the thread
that they wait for: two threads on two busy cores took seventeen times the CPU time of one (docs/performance.md). The
setting changes no bit of a result.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

_SAID = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")  # if one is set, it is left to the user
# iterations of libgomp's spin loop (torch's Linux wheels use libgomp), and milliseconds for LLVM's and Intel's OpenMP.
# On an idle machine long waits cost nothing measurable and save waking a thread; short waits leave busy cores free
_LONG = {"GOMP_SPINCOUNT": "10000"}  # default: 300,000. For the others 1 ms is no better than their default, 200 ms
_SHORT = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}


def settle(environment: MutableMapping[str, str] = os.environ, *, busy: bool | None = None) -> None:
    """Sets the spin time of OpenMP threads for this process and its children; `busy` defaults to `is_busy()`.

    Does nothing if the environment has such a setting, or if torch is loaded already.
    """
    if "torch" in sys.modules or any(name in environment for name in _SAID):
        return
    environment.update(_SHORT if (is_busy() if busy is None else busy) else _LONG)


def is_busy(loadavg: Path = Path("/proc/loadavg")) -> bool:
    """Returns whether other running programs leave fewer CPUs than this process may use; False on other systems than
    Linux."""
    try:
        running = int(loadavg.read_text().split()[3].partition("/")[0]) - 1  # one of them reads this
        ours = len(os.sched_getaffinity(0))
    except (OSError, ValueError, IndexError, AttributeError):
        return False
    return (os.cpu_count() or 1) - running < ours
