"""SHA-256 of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ratrain.errors import DataError


def sha256_of(files: Iterable[Path]) -> str:
    """Returns the SHA-256 of the concatenated files, read in pieces; of one file, as `sha256sum`. Raises DataError."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                while piece := file.read(2**20):
                    digest.update(piece)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()
