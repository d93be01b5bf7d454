"""The tokenizer of recall tasks: a token is its number."""

from __future__ import annotations

from collections.abc import Sequence

from ratrain.config.recall import SYMBOLS
from ratrain.data.recall.drawing import BLANK
from ratrain.errors import UsageError


class Symbols:
    """Encodes numbers between spaces; the part of tiktoken's interface that ratrain uses."""

    name = SYMBOLS
    eot_token = BLANK  # rows are not divided into documents; a blank begins a prompt

    def encode_ordinary(self, text: str) -> list[int]:
        """Returns the numbers in `text`. Raises UsageError for anything else."""
        words = text.split()
        if wrong := next((word for word in words if not word.isdecimal()), None):
            raise UsageError(f"{wrong!r} is no symbol of a recall task; expected numbers, as in '12 40 12'")
        return [int(word) for word in words]

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))

    def decode_single_token_bytes(self, token: int) -> bytes:
        return f" {token}".encode()
