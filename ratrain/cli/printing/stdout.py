"""stdout accepts any text, and commands that do work continue after its reader is gone (`ratrain v9 | head`)."""

from __future__ import annotations

import io
import os
import sys


class _Lasting(io.TextIOWrapper):
    """A text stream that discards its output once the reading end of its pipe is closed."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            discard(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            discard(self)


def write_any_text() -> None:
    """Escapes characters that the encoding of stdout lacks, as Python does on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def outlive_reader() -> None:
    """Keeps a command running when the reader of stdout closes the pipe, instead of ending it by BrokenPipeError.

    A stdout that was replaced in this process, by a test or a notebook, stays as it is.
    """
    if type(sys.stdout) is io.TextIOWrapper and not sys.stdout.isatty():
        sys.stdout.flush()
        file = open(sys.stdout.fileno(), "wb", closefd=False)  # noqa: SIM115 (open to the end of the process)
        sys.stdout = _Lasting(file, encoding=sys.stdout.encoding, errors="backslashreplace")


def discard(stream: io.TextIOBase | None = None) -> None:
    """Points the file of `stream` (stdout by default) to the null device.

    Text that could not be written stays in a buffer; the next flush, by Python at exit or by torch before it starts a
    compiler, would raise again.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, (stream or sys.stdout).fileno())
    os.close(null)
