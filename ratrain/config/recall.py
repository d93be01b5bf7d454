"""The recall tasks that `data.source` may name, the keys that each kind of source reads, and the room of a row."""

from __future__ import annotations

from collections.abc import Iterator

RECALL = ("mqar", "induction", "copy", "needle")
MIXTURE = "mixture"
SYMBOLS = "symbols"  # their tokenizer: a token is a number
FIRST_KEY = 2  # 0 is the blank, 1 the mark; keys follow, then values
_ROOM = {  # tokens of a row beside `distance`
    "mqar": lambda pairs: 3 * pairs,
    "induction": lambda pairs: 2 * (pairs + 1),
    "copy": lambda pairs: 2 * pairs,
    "needle": lambda pairs: 2 * pairs + 1,
}


def read_keys(source: str) -> set[str]:
    """Returns the keys of [data] that a source reads."""
    own = {"pairs", "distance", "noise"} if source in RECALL else {"most_overlap"}
    return {"source", "tokenizer", *own, *(["mixture"] if source == MIXTURE else [])}


def key_count(vocab_size: int) -> int:
    """Returns the number of keys; the remaining symbols are values."""
    return (vocab_size - FIRST_KEY) // 2


def room_faults(task: str, *, pairs: int, distance: int, block_size: int, vocab_size: int) -> Iterator[tuple[str, str]]:
    """Yields (key, message) if a row of `task` does not fit into the context, or its keys into the vocabulary."""
    needed = _ROOM[task](pairs) + distance
    if needed > block_size:
        rows = f"{task!r} with {pairs} pairs at distance {distance} needs rows of {needed} tokens"
        yield "pairs", f"{rows}, more than model.block_size = {block_size}"
    keys = {"copy": 1, "induction": pairs + 1}.get(task, pairs)  # copy may repeat a symbol
    known = key_count(vocab_size)
    if keys > known:
        yield "pairs", f"{task!r} needs {keys} distinct keys, and a vocabulary of {vocab_size} has {max(known, 0)}"
