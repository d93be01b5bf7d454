"""The user's tags and note of a run, in its notes.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ratrain.atomic import write_file
from ratrain.errors import DataError, MissingError, UsageError


@dataclass(frozen=True)
class Notes:
    """Tags to find a run by, and a one-line note."""

    tags: tuple[str, ...] = ()
    note: str = ""


def read_notes(run: Path) -> Notes:
    """Returns the notes of a run, empty without a notes.json. Raises DataError if the file cannot be read."""
    file = run / "notes.json"
    try:
        notes = json.loads(file.read_text(encoding="utf-8"))
        tags, note = notes["tags"], notes["note"]
        if not isinstance(note, str) or not all(isinstance(tag, str) for tag in tags):
            raise TypeError
    except FileNotFoundError:
        return Notes()
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read; mend it, or delete it to lose the tags and the note") from error
    return Notes(tuple(tags), note)


def tag(run: Path, tags: Sequence[str]) -> Notes:
    """Adds new tags to the run; returns its notes. Raises UsageError unless a tag is one printable word, no comma."""
    for name in tags:
        if not name.isprintable() or not name or set(name) & set(" ,"):
            raise UsageError(f"{name!r}: a tag is one word without a comma")
    old = read_notes(run)
    return _write_notes(run, Notes(tuple(dict.fromkeys([*old.tags, *tags])), old.note))


def untag(run: Path, tags: Sequence[str]) -> Notes:
    """Removes the tags; returns the run's notes. Raises MissingError for a tag that the run does not have."""
    old = read_notes(run)
    for name in tags:
        if name not in old.tags:
            raise MissingError(f"{run}: has no tag {name!r}; its tags: {', '.join(old.tags) or 'none'}")
    return _write_notes(run, Notes(tuple(name for name in old.tags if name not in tags), old.note))


def note(run: Path, text: str) -> Notes:
    """Replaces the run's note by `text`; returns its notes."""
    return _write_notes(run, Notes(read_notes(run).tags, " ".join(text.split())))


def _write_notes(run: Path, notes: Notes) -> Notes:
    write_file(run / "notes.json", [(json.dumps(asdict(notes), indent=1) + "\n").encode()])
    return notes
