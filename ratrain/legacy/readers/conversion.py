"""Writes old runs as one manifest: one run as a variant, several as an ablation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ratrain.config.toml import dotted, toml
from ratrain.errors import Fault, ManifestError
from ratrain.legacy.readers.mechanism import base_of, mechanism, own_optim
from ratrain.legacy.readers.options import Asked
from ratrain.legacy.readers.recipe import SCALES, recipe
from ratrain.legacy.readers.tree import Entry, Tree, line, lines, plain

_WHOLE = ("optim", "prune")  # sections written whole if they differ: their keys depend on their kind


@dataclass(frozen=True)
class Run:
    """One old run: its name, the manifest that it builds on, and what it changes."""

    name: str
    base: str
    tree: Tree


@dataclass
class Conversion:
    """The text of a manifest, with warnings and notes.

    `ignored`: lines with an unknown meaning, or that the old tools dropped or changed. `jobs` and `dry_run`: options
    for the command that runs it.
    """

    name: str
    text: str
    runs: Sequence[Run]
    is_study: bool
    ignored: list[Fault] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    jobs: int = 1
    dry_run: bool = False


@dataclass(frozen=True)
class Head:
    """Name, scale, and comments at the top of the manifest."""

    name: str
    origin: str  # the source of the conversion, reading and profile
    notes: Sequence[str] = ()
    scale: str = SCALES["gpt2"][0]


def run_of(name: str, asked: Asked, *, study: str, profile: str) -> Run:
    """Converts one run. Raises ManifestError if an option cannot be followed."""
    base = base_of(asked, study=study, profile=profile)
    tree = recipe(asked, profile=profile) | mechanism(asked, base, profile=profile)
    own = own_optim(base)
    if own and own["kind"] != tree["optim"]["kind"].value:
        tree["optim"] = {key: Entry(value, f"{base}'s own") for key, value in own.items()}
    return Run(name, base, tree)


def slug(name: str) -> str:
    """Turns `name` into an id."""
    return re.sub(r"[^a-z0-9_.-]+", "-", name.lower()).strip("-_.") or "old"


def distinct(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Drops runs that equal an earlier run; returns the others, and a note on each dropped one."""
    found: list[Run] = []
    notes = []
    for run in runs:
        twin = next((one for one in found if one.base == run.base and values_of(one.tree) == values_of(run.tree)), None)
        if twin:
            notes.append(f"{run.name} equals {twin.name} and is left out")
        else:
            found.append(run)
    return found, notes


def single(head: Head, run: Run) -> str:
    """Returns the manifest of one run."""
    extends = [f"{run.base}.toml" if run.base != "v0" else "gpt2.toml", f"scale/{head.scale}.toml"]
    if run.base != "v0":
        extends[0] = _file_of(run.base)
    top = [f"id = {toml(slug(head.name))}", f"title = {toml(head.name)}", f"extends = {toml(extends)}"]
    return _joined([*_comments(head), *top, *lines(run.tree)])


def study(head: Head, runs: Sequence[Run], baseline: str | None = None) -> str:
    """Returns the ablation manifest of several runs.

    The baseline is the manifest `baseline`, else the first run without patches and pruning, else the first run.
    """
    clean = [run for run in runs if not _added(run.tree)]
    first = (clean or runs)[0]
    shared = {
        name: dict(section) for name, section in first.tree.items() if not (baseline and name in _added(first.tree))
    }
    shared["log"].pop("run_name", None)
    others = [run for run in runs if baseline or run is not first]
    changed = {run.name: _changes(run, shared) for run in others}
    plain_arms = [run for run in others if not changed[run.name] and run.base != (baseline or first.base)]
    named = [run for run in others if run not in plain_arms]
    top = [
        f"id = {toml(slug(head.name))}",
        f"title = {toml(head.name)}",
        line("base", Entry(baseline or first.base, "BASELINE" if baseline else f"was {first.name}")),
        f"scale = {toml(head.scale)}",
        line("seed.init", Entry([1], "each was run once; verdicts take three seeds or more: --seeds 1,2,3")),
        line("controls", Entry(False, "only the runs of the file")),
    ]
    if plain_arms:
        names = ", ".join(run.name for run in plain_arms)
        top.append(line("arms", Entry([run.base for run in plain_arms], f"were {names}")))
    arms: list[str] = []
    for run in named:
        at = f"arm.{dotted((run.name,))}"
        arms += ["", f"[{at}]", f"manifest = {toml(run.base)}", *_compact(changed[run.name])]
    return _joined([*_comments(head), *top, *lines(shared, "set."), *arms])


def _file_of(base: str) -> str:
    """Returns the path of the manifest with this id, as `extends` takes it."""
    from ratrain.config.find import SHIPPED, find_manifest

    return find_manifest(base).relative_to(SHIPPED).as_posix()


def is_plain(run: Run, base: str) -> bool:
    """Whether the run is the manifest `base` and nothing more."""
    return run.base == base and not _added(run.tree)


def _added(tree: Tree) -> list[str]:
    """Returns the names of the sections that patch the model or prune it."""
    return [name for name in tree if name == "prune" or name.startswith("patch.")]


def _changes(run: Run, shared: Tree) -> dict[str, Any]:
    """Returns the differences of a run to the shared keys: dotted keys, and whole sections as tables."""
    found: dict[str, Any] = {}
    for name, section in run.tree.items():
        mine = {key: entry.value for key, entry in section.items() if key != "run_name"}
        theirs = {key: entry.value for key, entry in shared.get(name, {}).items()}
        if mine == theirs:
            continue
        if name in _WHOLE or name.startswith("patch."):
            found[name] = mine
        else:
            found |= {f"{name}.{key}": value for key, value in mine.items() if theirs.get(key) != value}
    for name in shared:
        if name.count(".") == 1 and name.startswith("patch.") and name not in run.tree:
            found[name] = {"enabled": False}
        elif name == "prune" and name not in run.tree:
            message = f"{run.name} does not prune, and its baseline does; put a run without pruning first"
            raise ManifestError([Fault("", "", message)])
    return found


def _compact(changes: Mapping[str, Any]) -> list[str]:
    return [f"set.{key} = {toml(value)}" for key, value in changes.items()]


def values_of(tree: Tree) -> dict[str, dict[str, Any]]:
    """Returns the sections as plain values, without log.run_name."""
    return {
        name: {key: entry.value for key, entry in section.items() if key != "run_name"}
        for name, section in tree.items()
    }


def _comments(head: Head) -> list[str]:
    return [f"# {plain(text)}" for text in (head.origin, *head.notes)]


def _joined(found: Sequence[str]) -> str:
    return "\n".join(found) + "\n"
