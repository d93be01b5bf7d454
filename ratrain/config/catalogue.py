"""The catalogue of `ratrain list`: every shipped variant, read without pydantic, broken ones with their fault."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ratrain.config.find import own_id, shipped
from ratrain.config.parse import label_of
from ratrain.config.read import read_source
from ratrain.errors import ManifestError, RatrainError


@dataclass(frozen=True)
class Entry:
    """One shipped variant; `patches` holds (name, kind) pairs, inherited ones included."""

    id: str
    title: str
    file: str
    patches: tuple[tuple[str, str], ...] = ()
    same_as: str | None = None
    prune: str | None = None  # kind of weight pruning
    fault: str | None = None

    def has(self, word: str) -> bool:
        """Whether the id, title, file, kind of pruning or a patch contains the word, ignoring case."""
        known = (self.id, self.title, self.file, self.prune or "", *(part for patch in self.patches for part in patch))
        return any(word.lower() in text.lower() for text in known)


def catalogue() -> list[Entry]:
    """Returns every shipped variant, v2 before v10; a readable file without an id is not a variant."""
    return [entry for file in shipped() if (entry := _entry(file))]


def _entry(file: Path) -> Entry | None:
    try:
        tree = read_source(file).tree
    except RatrainError as error:
        fault = str(error.faults[0]) if isinstance(error, ManifestError) else str(error)
        return Entry(own_id(file) or file.stem, "", label_of(file), fault=fault)
    if "id" not in tree:
        return None
    patches = tree.get("patch")
    if not isinstance(patches, dict) or not all(isinstance(options, dict) for options in patches.values()):
        patches = {}
    return Entry(
        id=str(tree["id"]),
        title=str(tree.get("title", "")),
        file=label_of(file),
        patches=tuple((name, str(options.get("kind", name))) for name, options in patches.items()),
        same_as=tree.get("same_as"),
        prune=str(prune.get("kind")) if isinstance(prune := tree.get("prune"), dict) else None,
    )
