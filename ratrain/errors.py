"""Errors shown to the user, each with its exit code (sysexits.h)."""

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
    """Base class of errors with one clear message: place, fault and remedy. Never shown with a traceback."""

    exit = Exit.BUG


class UsageError(RatrainError):
    """An invalid command line."""

    exit = Exit.USAGE


class DataError(RatrainError):
    """Data or a checkpoint that exists but is invalid: foreign, truncated, corrupt."""

    exit = Exit.BAD_DATA


class MissingError(RatrainError):
    """A missing input."""

    exit = Exit.MISSING


class UnavailableError(RatrainError):
    """A device, a compiler or an optional package that this machine lacks."""

    exit = Exit.UNAVAILABLE


class GaveUpError(RatrainError):
    """The run ended several times in a row without a new checkpoint."""

    exit = Exit.GAVE_UP


class MemoryShortError(RatrainError):
    """The device has too little memory for the manifest."""

    exit = Exit.OUT_OF_MEMORY


class CannotCreateError(RatrainError):
    """A folder that is not writable, or that another process holds."""

    exit = Exit.CANNOT_CREATE


class DiskError(RatrainError):
    """A read or write failed half-way: an I/O error, a full disk."""

    exit = Exit.IO


class PreemptedError(RatrainError):
    """The run stopped on request; it saved a checkpoint, and the same command resumes it."""

    exit = Exit.PREEMPTED


class DivergedError(RatrainError):
    """The run diverged: a loss, a weight, or more gradients than the manifest allows are not finite."""

    exit = Exit.DIVERGED


class OptionError(ValueError):
    """An option of a patch that does not fit. `option` is its key below the patch: ("args", "config")."""

    def __init__(self, message: str, *option: str):
        super().__init__(message)
        self.option = option


@dataclass(frozen=True)
class Fault:
    """One fault of a manifest: file and line of the key, the key, and a message with the remedy."""

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.message) if part)


class ManifestError(RatrainError):
    """All faults of a manifest at once."""

    exit = Exit.BAD_MANIFEST

    def __init__(self, faults: Sequence[Fault]):
        self.faults = tuple(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__("\n".join([*map(str, self.faults), f"{count}; nothing was run"]))
