"""What can go wrong for a user, each with the exit code that says so (sysexits.h)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command; schedulers may requeue on PREEMPTED."""

    DONE = 0
    BUG = 1
    USAGE = 2
    BAD_DATA = 65
    MISSING = 66
    UNAVAILABLE = 69
    GAVE_UP = 70
    OUT_OF_MEMORY = 71
    CANNOT_CREATE = 73
    IO = 74
    PREEMPTED = 75
    DIVERGED = 76
    BAD_MANIFEST = 78
    INTERRUPTED = 130


class RatrainError(Exception):
    """One clear message: where, what, what would be right. Never shown with a traceback."""

    exit = Exit.BUG


class UsageError(RatrainError):
    """A command line that cannot be acted on."""

    exit = Exit.USAGE


class DataError(RatrainError):
    """Data or a checkpoint that is there but wrong: foreign, truncated, corrupt."""

    exit = Exit.BAD_DATA


class MissingError(RatrainError):
    """An input that is not there."""

    exit = Exit.MISSING


class UnavailableError(RatrainError):
    """A device, a compiler or an optional package that this machine lacks."""

    exit = Exit.UNAVAILABLE


class GaveUpError(RatrainError):
    """The run crashed several times at the same place."""

    exit = Exit.GAVE_UP


class MemoryShortError(RatrainError):
    """The device has not enough memory for what the manifest asks."""

    exit = Exit.OUT_OF_MEMORY


class CannotCreateError(RatrainError):
    """A folder that cannot be written, or that another process holds."""

    exit = Exit.CANNOT_CREATE


class DiskError(RatrainError):
    """Reading or writing failed half-way: an I/O error, a full disk."""

    exit = Exit.IO


class PreemptedError(RatrainError):
    """The run was asked to stop; it saved and can be resumed by the same command."""

    exit = Exit.PREEMPTED


class DivergedError(RatrainError):
    """The loss or the gradient stayed non-finite for longer than the manifest allows."""

    exit = Exit.DIVERGED


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a manifest: which file and line wrote the key, the key, and what would be right."""

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.message) if part)


class ManifestError(RatrainError):
    """All the faults of a manifest at once."""

    exit = Exit.BAD_MANIFEST

    def __init__(self, faults: Sequence[Fault]):
        self.faults = tuple(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__("\n".join([*map(str, self.faults), f"{count}; nothing was run"]))
