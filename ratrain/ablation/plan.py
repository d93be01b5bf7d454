"""From an ablation manifest to the runs it asks for, each resolved, and refused together where they would mislead."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ratrain.ablation.manifest import AblationManifest, Verdicts, changes, points, read_ablation
from ratrain.config.catalogue import catalogue
from ratrain.config.find import find_manifest
from ratrain.config.identity import recipe_hash, run_folder
from ratrain.config.parse import Layer
from ratrain.config.read import Source, read_source
from ratrain.config.resolve import resolve
from ratrain.config.schema import Manifest
from ratrain.engine.check import Checked, check
from ratrain.errors import Fault, ManifestError, MissingError, UsageError
from ratrain.registry import optim_kinds, patch_kinds

# what every arm of a study must share with the baseline, or their losses are of different things
_SHARED = ("model.block_size", "model.vocab_size", "data", "eval.windows", "train.precision", "scale")


@dataclass(frozen=True)
class Arm:
    """One column of a study: a name, the merged manifest of it for each pair of seeds, what it builds."""

    name: str
    point: dict[str, object]  # the keys of a grid and their values here
    source_of: Callable[[int, int], Source]
    manifest: Manifest  # of the first seeds
    built: Checked
    recipe: str

    def folder(self, init: int, data: int) -> str:
        """Of the run with these seeds, below the folder of runs."""
        seed = self.manifest.seed.model_copy(update={"init": init, "data": data})
        return run_folder(self.manifest.model_copy(update={"seed": seed}))


@dataclass(frozen=True)
class Task:
    """One run of a study; all of it goes to another process."""

    arm: str
    init: int
    data: int
    source: Source
    patches: tuple[Path, ...]
    folder: str  # below the folder of runs

    def manifest(self) -> Manifest:
        """Resolved where it is asked for: the classes of kinds do not go to another process."""
        return resolved(self.source, self.patches)


@dataclass(frozen=True)
class Plan:
    """A study: the baseline first among its arms."""

    id: str
    title: str
    file: str
    arms: tuple[Arm, ...]
    seeds: tuple[tuple[int, int], ...]
    patches: tuple[Path, ...]
    verdict: Verdicts

    @property
    def base(self) -> Arm:
        return self.arms[0]

    @property
    def name(self) -> str:
        """`<id>-<scale>-<hash8>`, of what is trained, compared, and may be claimed."""
        facts = [[(arm.name, arm.recipe) for arm in self.arms], self.seeds, self.verdict.model_dump(mode="json")]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        return f"{self.id}-{self.base.manifest.scale}-{digest[:8]}"

    def tasks(self) -> Iterator[Task]:
        """Every run, one seed after the other: a study that is stopped has whole blocks of arms."""
        for init, data in self.seeds:
            for arm in self.arms:
                yield Task(arm.name, init, data, arm.source_of(init, data), self.patches, arm.folder(init, data))


def make_plan(
    file: Path,
    *,
    scale: str | None = None,
    overrides: Sequence[str] = (),
    seeds: Sequence[tuple[int, int]] | None = None,
    only: Sequence[str] = (),
    patches: Sequence[Path] = (),
) -> Plan:
    """The study of an ablation manifest; `scale`, `overrides`, `seeds` and `only` (names of arms) come from the command
    line and win. Raises one ManifestError with the faults of every arm, UsageError for an arm that is not there."""
    study, layer = read_ablation(file)
    drafts = list(_drafts(study, layer))
    pairs = tuple(seeds or study.seed.pairs)
    faults, arms = [], []
    for draft in drafts:
        try:
            arms.append(_arm(draft, study, layer, scale or study.scale, overrides, pairs[0], patches))
        except ManifestError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    if faults:
        raise ManifestError(faults)
    arms = _without_repeats(arms)
    faults = [*_twins(arms, layer), *_unlike(arms, layer)]
    if faults:
        raise ManifestError(faults)
    return Plan(study.id, study.title, layer.label, tuple(_asked(arms, only)), pairs, tuple(patches), study.verdict)


# -- arms as the file names them ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draft:
    """An arm before it is resolved; `name` is empty where the manifest's id is to name it."""

    name: str
    manifest: str
    at: tuple[str, ...]  # the key that names it
    point: dict[str, object]
    layers: tuple[Layer, ...]


def _drafts(study: AblationManifest, layer: Layer) -> Iterator[_Draft]:
    shared = changes(layer, "set")
    yield _Draft("", study.base, ("base",), {}, (shared,))
    for word in study.arms:
        for name in _ids_like(word, layer):
            yield _Draft("", name, ("arms",), {}, (shared,))
    for name, arm in study.arm.items():
        own = changes(layer, "arm", name, "set")
        for point, at in points(changes(layer, "arm", name, "grid")):
            label = " ".join([name, *(f"{key.rpartition('.')[2]}={_word(value)}" for key, value in point.items())])
            yield _Draft(label, arm.manifest, ("arm", name, "manifest"), point, (shared, own, at))


def _ids_like(word: str, layer: Layer) -> list[str]:
    if not set("*?[") & set(word):
        return [word]
    ids = [entry.id for entry in catalogue() if fnmatchcase(entry.id, word)]
    if not ids:
        raise layer.fault(f"no variant's id fits {word!r}; `ratrain list` shows them all", "arms")
    return ids


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _arm(
    draft: _Draft, study: AblationManifest, layer: Layer, scale: str | None, overrides: Sequence[str],
    first: tuple[int, int], patches: Sequence[Path],
) -> Arm:  # fmt: skip
    try:
        file = find_manifest(draft.manifest)
    except MissingError as error:
        raise layer.fault(str(error), *draft.at) from None

    def source_of(init: int, data: int) -> Source:
        seed = Layer(
            layer.label, {"seed": {"init": init, "data": data}}, lines={("seed",): layer.lines.get(("seed",), 1)}
        )
        return read_source(file, scale=scale, overrides=[*draft.layers, *overrides, seed])

    source = source_of(*first)
    manifest = resolved(source, patches)
    name = draft.name or manifest.id
    return Arm(name, draft.point, source_of, manifest, check(manifest), recipe_hash(manifest))


def resolved(source: Source, patches: Sequence[Path]) -> Manifest:
    """With the kinds of `patches` folders, and of those beside the manifest's files."""
    return resolve(source, patches=patch_kinds(patches, beside=source.files), optimizers=optim_kinds())


# -- what would mislead -------------------------------------------------------------------------------------------


def _without_repeats(arms: Sequence[Arm]) -> list[Arm]:
    """An arm that a pattern names again, the baseline above all, is one arm."""
    seen: dict[tuple[str, str], Arm] = {}
    for arm in arms:
        seen.setdefault((arm.name, arm.recipe), arm)
    return list(seen.values())


def _twins(arms: Sequence[Arm], layer: Layer) -> Iterator[Fault]:
    names: dict[str, Arm] = {}
    recipes: dict[str, Arm] = {}
    for arm in arms:
        if (other := names.setdefault(arm.name, arm)) is not arm:
            yield Fault(layer.label, arm.name, "two arms of this name train different things; call one [arm.NAME]")
        elif (other := recipes.setdefault(arm.recipe, arm)) is not arm and not _told(arm, other):
            yield Fault(layer.label, arm.name, f"trains exactly what {other.name} trains; take one out, or change it")


def _told(arm: Arm, other: Arm) -> bool:
    """Whether the manifests say that they are the same."""
    return arm.manifest.same_as == other.manifest.id or other.manifest.same_as == arm.manifest.id


def _unlike(arms: Sequence[Arm], layer: Layer) -> Iterator[Fault]:
    base, *others = arms
    for key in _SHARED:
        wanted = _at(base.manifest, key)
        for arm in others:
            if (value := _at(arm.manifest, key)) != wanted:
                message = f"{key} is {value} here and {wanted} in {base.name}; losses would not be comparable"
                yield Fault(layer.label, arm.name, message)


def _at(manifest: Manifest, key: str) -> object:
    value: object = manifest
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _asked(arms: Sequence[Arm], only: Sequence[str]) -> list[Arm]:
    """The baseline, and of the others those that `only` names by name or pattern; all where it names none."""
    base, *others = arms
    for word in only:
        if not any(fnmatchcase(arm.name, word) for arm in arms):
            raise UsageError(f"--only {word}: no such arm; the arms are {', '.join(arm.name for arm in arms)}")
    return [base, *(arm for arm in others if not only or any(fnmatchcase(arm.name, word) for word in only))]
