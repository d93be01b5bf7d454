"""A vocabulary of ratrain as the files of a fast tokenizer: `tokenizers`' byte-level BPE, with the same ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ratrain.config.recall import SYMBOLS
from ratrain.data.tokenizer import END_OF_TEXT, byte_letters, ranks_of


def tokenizer_files(name: str, *, length: int) -> dict[str, Any]:
    """Returns the contents of tokenizer.json and tokenizer_config.json; `length` is the model's longest context.

    The symbols of a recall task have no such files: their text is their numbers.
    """
    if name == SYMBOLS:
        return {}
    ranks = ranks_of(name)
    letters = {byte: letter for letter, byte in byte_letters().items()}

    def spelt(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [[spelt(a), spelt(b)] for a, b in (_parts(token, ranks) for token in ranks if len(token) > 1)]
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": len(ranks), "content": END_OF_TEXT, **special}],
            "normalizer": None,
            "pre_tokenizer": bytewise,
            "post_processor": bytewise,
            "decoder": bytewise,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {spelt(token): rank for token, rank in ranks.items()} | {END_OF_TEXT: len(ranks)},
                "merges": merges,
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{role}_token": END_OF_TEXT for role in ("bos", "eos", "unk")},
            "model_max_length": length,
            "clean_up_tokenization_spaces": False,
        },
    }


def _parts(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Returns the two tokens whose merge is `token`: those that merges of lower rank lead to."""
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        rank, at = min((ranks.get(parts[at] + parts[at + 1], len(ranks)), at) for at in range(len(parts) - 1))
        assert rank < ranks[token], f"{token!r} is no merge of two tokens of lower rank"
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
