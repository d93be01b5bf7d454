"""Writes shards one by one with a record of progress: a killed writer resumes at the end of its last shard."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from ratrain.atomic import ASIDE, write_file
from ratrain.data.shards import HEADER_BYTES, read_meta, write_meta, write_shard
from ratrain.errors import CannotCreateError, DataError

STATE = "state.json"
_SPLITS: tuple[str, ...] = ("train", "val")
_FRESH = "--fresh moves it aside"


class ShardWriter:
    """Fills shards of equal size, two splits at once; a document may continue in the next shard."""

    def __init__(self, folder: Path, *, tokenizer: str, vocab_size: int, recipe: dict[str, Any]):
        self.folder, self.tokenizer, self.vocab_size, self.recipe = folder, tokenizer, vocab_size, recipe
        self.file, self.number = 0, 0  # the last document added: source, and its number there
        self.nulls = 0  # records with null text before that document
        self.counts = dict.fromkeys(_SPLITS, 0)  # documents
        self.splits: dict[str, list[dict]] = {split: [] for split in _SPLITS}
        self.is_complete = False
        self._pending = {split: np.empty(recipe["shard_tokens"], "<u2") for split in _SPLITS}  # allocated on first use
        self._fill = dict.fromkeys(_SPLITS, 0)

    @classmethod
    def open(cls, folder: Path, **options: Any) -> ShardWriter:
        """Opens the writer of `folder`, resumed from the recorded progress of an earlier writer with the same options.

        Raises CannotCreateError if the folder holds anything else, and DataError if a recorded file is damaged.
        """
        writer = cls(folder, **options)
        if (meta := read_meta(folder)) is not None:
            writer._adopt(meta)
        elif (state := _read_state(folder)) is not None:
            writer._continue(state)
        elif any(path.name != _pending_name(0) and not path.name.endswith(ASIDE) for path in folder.iterdir()):
            raise CannotCreateError(f"{folder}: holds files that `ratrain prepare` did not make; {_FRESH}")
        writer._drop_leftovers()
        if not writer.is_complete:
            writer._save()  # the state file marks the folder as made by this writer
        return writer

    @property
    def documents(self) -> int:
        return sum(self.counts.values())

    def tokens(self) -> dict[str, int]:
        """Returns the tokens added so far, by split."""
        return {s: sum(entry["tokens"] for entry in self.splits[s]) + self._fill[s] for s in _SPLITS}

    def shard_counts(self) -> dict[str, int]:
        return {split: len(entries) for split, entries in self.splits.items()}

    def add(self, split: str, tokens: np.ndarray, *, file: int, number: int) -> None:
        """Appends the tokens, uint16 [n], of document `number` of source `file`."""
        self.counts[split] += 1
        self.file, self.number = file, number
        before = self.shard_counts()
        pending = self._pending[split]
        while len(tokens):
            taken = tokens[: len(pending) - self._fill[split]]
            pending[self._fill[split] :][: len(taken)] = taken
            self._fill[split] += len(taken)
            tokens = tokens[len(taken) :]
            if self._fill[split] == len(pending):
                self._flush(split)
        if self.shard_counts() != before:
            self._save()

    def finish(self) -> None:
        """Writes the last shards, then meta.json, then removes the record of progress."""
        for split in _SPLITS:
            if self._fill[split]:
                self._flush(split)
        options = {"tokenizer": self.tokenizer, "vocab_size": self.vocab_size}
        write_meta(self.folder, **options, splits=self.splits, documents=self.counts, recipe=self.recipe)
        self.is_complete = True
        self._drop_leftovers()

    def abandon(self) -> None:
        """Removes all files of a preparation that failed before its first shard was full."""
        if not any(self.splits.values()):
            (self.folder / STATE).unlink(missing_ok=True)
            for path in self.folder.glob("pending-*"):
                path.unlink()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _flush(self, split: str) -> None:
        path = self.folder / f"{split}_{len(self.splits[split]):06d}.bin"
        self.splits[split].append(write_shard(path, self._pending[split][: self._fill[split]]))
        self._fill[split] = 0

    def _save(self) -> None:
        """Records the point after the last document: first tokens not yet in a shard, then the state."""
        pending = b"".join(self._pending[split][: self._fill[split]].tobytes() for split in _SPLITS)
        sha256 = hashlib.sha256(pending).hexdigest()
        name = _pending_name(self.documents)
        write_file(self.folder / name, [pending])
        state = {
            "options": self._options(),
            "file": self.file,
            "number": self.number,
            "nulls": self.nulls,
            "documents": self.counts,
            "splits": self.splits,
            "fill": self._fill,
            "pending": {"file": name, "sha256": sha256},
        }
        write_file(self.folder / STATE, [json.dumps(state).encode()])
        self._drop_leftovers()

    def _drop_leftovers(self) -> None:
        """Removes leftovers of a killed writer: unfinished files, shards that no record lists, outdated records."""
        patterns, keep = [f".*{ASIDE}", "pending-*", STATE], set()
        if not self.is_complete:  # a user may have added shards to a finished folder
            patterns += ["train_??????.bin", "val_??????.bin"]
            keep = {entry["file"] for split in _SPLITS for entry in self.splits[split]}
            keep |= {STATE, _pending_name(self.documents)}
        for pattern in patterns:
            for path in self.folder.glob(pattern):
                if path.name not in keep:
                    path.unlink()

    def _options(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer, **self.recipe}

    def _adopt(self, meta: dict[str, Any]) -> None:
        """Takes over a finished folder with the same options; raises CannotCreateError for any other."""
        recipe = meta.get("recipe")
        self._require_same({"tokenizer": meta["tokenizer"], **(recipe if isinstance(recipe, dict) else {})})
        self._require_shards(meta["splits"])
        self.splits, self.counts, self.is_complete = meta["splits"], meta["documents"], True

    def _continue(self, state: dict[str, Any]) -> None:
        if not any(state["splits"].values()):
            return  # no shard is finished: start over, with any options
        self._require_same(state["options"])
        self._require_shards(state["splits"])
        try:
            pending = (self.folder / state["pending"]["file"]).read_bytes()
        except OSError:
            pending = b""
        if hashlib.sha256(pending).hexdigest() != state["pending"]["sha256"]:
            raise DataError(f"{self.folder / state['pending']['file']}: is missing or damaged; {_FRESH}")
        self.file, self.number, self.nulls = state["file"], state["number"], state.get("nulls", 0)
        self.counts, self.splits, self._fill = state["documents"], state["splits"], state["fill"]
        tokens = np.frombuffer(pending, "<u2")
        for split, part in zip(_SPLITS, np.split(tokens, [self._fill["train"]]), strict=True):
            self._pending[split][: len(part)] = part

    def _require_shards(self, splits: dict[str, list[dict]]) -> None:
        for entry in (entry for split in _SPLITS for entry in splits[split]):
            path = self.folder / entry["file"]
            if not path.is_file() or path.stat().st_size != HEADER_BYTES + 2 * entry["tokens"]:
                raise DataError(f"{path}: is missing or truncated; {_FRESH}")

    def _require_same(self, options: dict[str, Any]) -> None:
        differing = [key for key, value in self._options().items() if options.get(key) != value]
        if differing:
            raise CannotCreateError(
                f"{self.folder}: was prepared with other {', '.join(differing)}; choose another --out, or {_FRESH}"
            )


def recorded_recipe(folder: Path) -> dict[str, Any]:
    """Returns the options of the preparation in `folder`, finished or not; empty if there is none. Raises DataError."""
    meta, state = read_meta(folder), _read_state(folder)
    recipe = meta.get("recipe") if meta else state["options"] if state else None
    return recipe if isinstance(recipe, dict) else {}


def _pending_name(documents: int) -> str:
    return f"pending-{documents}"


def _read_state(folder: Path) -> dict[str, Any] | None:
    """Reads the record of an unfinished preparation, None if there is none. Raises DataError."""
    try:
        state = json.loads((folder / STATE).read_bytes())
        if not {"options", "pending", "splits", "fill", "file", "number", "documents"} <= state.keys():
            raise ValueError("lacks a key")
        return state
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder / STATE}: cannot be read: {error}; {_FRESH}") from error
