"""How OpenMP's threads wait for one another: decided before torch is loaded, which loads OpenMP.

They spin for milliseconds before they sleep. Beside other work that takes the time of the thread they wait for: two
threads on two busy cores took seventeen times the CPU time of one (docs/performance.md). A wait changes no bit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

_SAID = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")  # any of them: the user has decided
# turns of libgomp's loop, which is that of torch's wheels for Linux, and milliseconds of LLVM's and Intel's. Long waits
# cost an idle machine nothing measurable, where a thread that sleeps must be woken; short ones leave busy cores alone
_LONG = {"GOMP_SPINCOUNT": "10000"}  # 300,000 by itself. A millisecond of the others' is no better than their 200
_SHORT = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}


def settle(environment: MutableMapping[str, str] = os.environ, *, busy: bool | None = None) -> None:
    """Sets how long threads spin, for this process and those it starts; `busy` is looked up unless given.

    Does nothing where the environment says something of it, or where torch is loaded already.
    """
    if "torch" in sys.modules or any(name in environment for name in _SAID):
        return
    environment.update(_SHORT if (is_busy() if busy is None else busy) else _LONG)


def is_busy(loadavg: Path = Path("/proc/loadavg")) -> bool:
    """Whether other programs that run just now leave fewer CPUs than this process may use; False where Linux is not."""
    try:
        running = int(loadavg.read_text().split()[3].partition("/")[0]) - 1  # one of them reads this
        ours = len(os.sched_getaffinity(0))
    except (OSError, ValueError, IndexError, AttributeError):
        return False
    return (os.cpu_count() or 1) - running < ours
