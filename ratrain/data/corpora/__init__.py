"""Text and tokenizers shipped with the package; every load verifies the SHA-256. Origins: README.md here."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from importlib.resources import files

from ratrain.errors import DataError

SHA256 = {  # of the unpacked bytes
    "shakespeare.txt": "850a0d28181b289b17db8c1fdd0460bff67cd4615469b09996e42a2c69f26671",
    "gpt2_vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "shakespeare2k.tiktoken": "5f3f1f58562f64ac6a260158996a40e51a1b8b911bd02b9d44b7398540326dd0",
}
VALIDATION_WORKS = ("MACBETH", "TWELFTH NIGHT")

_WORK = re.compile(r"^(?=[^\n]+\n\n?by William Shakespeare\n)", re.MULTILINE)


def read(name: str) -> bytes:
    """Returns the unpacked bytes of an embedded file. Raises DataError if the installed copy is damaged."""
    file = files(__name__).joinpath(name if name.endswith(".tiktoken") else f"{name}.gz")
    try:
        packed = file.read_bytes()
        unpacked = packed if name.endswith(".tiktoken") else gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read ({error}); install ratrain again") from error
    if hashlib.sha256(unpacked).hexdigest() != SHA256[name]:
        raise DataError(f"{file}: is not the file that ratrain ships (SHA-256 differs); install ratrain again")
    return unpacked


def split_works(text: str) -> tuple[list[str], list[str]]:
    """Splits the Shakespeare text into (training works, validation works), in order; each starts with its title."""
    works = [work.strip("\n") + "\n" for work in _WORK.split(text) if work]
    val = [work for work in works if work.startswith(VALIDATION_WORKS)]
    assert len(val) == len(VALIDATION_WORKS), "a validation work is missing or found twice"
    return [work for work in works if work not in val], val
