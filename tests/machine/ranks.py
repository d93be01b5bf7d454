"""Forks processes that find each other, as a launcher's would."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable


def forked(processes: int, member: Callable[[int, int], int]) -> list[tuple[int, int]]:
    """Forks the ranks of a run, or one process; each ends with the code of `member(rank, told)`.

    Returns the process and a file descriptor of each, from which all that was written to `told` is read.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            if processes > 1:
                places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1")
            os._exit(member(rank, write))
        os.close(write)
        children.append((child, read))
    return children
