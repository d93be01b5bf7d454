"""Plans a study: resolves every run of an ablation manifest, and refuses arms whose comparison would mislead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from ratrain.ablation.arms import Arm, ArmBuilder, Costs, Role, Seeds, Task, name_of
from ratrain.ablation.budget import StudyBudget
from ratrain.ablation.manifest import AblationManifest, read_ablation
from ratrain.ablation.manifest import Seeds as SeedSection
from ratrain.config.find import find_manifest
from ratrain.config.parse import Layer, parse_file
from ratrain.config.resolve import steps_total
from ratrain.config.schema import Manifest
from ratrain.errors import Fault, ManifestError, MissingError, UsageError

# keys that every arm must share with the baseline; otherwise their losses are not comparable
_SHARED = ("model.block_size", "model.vocab_size", "data", "eval.windows", "eval.ema", "train.precision", "scale")


@dataclass(frozen=True)
class Plan:
    """The plan of a study: `arms` begins with the baseline, `asked` holds the names of the arms to run now.

    A trial is part of a search: `search` is the study that it began with, `before` the ideas that were tried earlier;
    `command` repeats it.
    """

    study: AblationManifest
    file: str
    arms: tuple[Arm, ...]
    seeds: Seeds
    patches: tuple[Path, ...]
    asked: frozenset[str]
    build: ArmBuilder
    search: str = ""
    before: int = 0
    command: str = ""
    folder: Path = Path()  # of the ablation manifest: paths of guards are relative to it

    @property
    def base(self) -> Arm:
        return self.arms[0]

    @property
    def name(self) -> str:
        """The name of the study's folder."""
        return name_of(self.study, self.base)

    def of_role(self, *roles: Role) -> list[Arm]:
        return [arm for arm in self.arms if arm.role in roles]

    def tasks(self, arms: Sequence[Arm] | None = None) -> Iterator[Task]:
        """Yields the runs of `arms` (default: the asked ones) seed by seed, so that a stopped study has complete
        seeds."""
        chosen = [arm for arm in self.arms if arm.name in self.asked] if arms is None else arms
        for at in range(max((len(arm.seeds) for arm in chosen), default=0)):
            for arm in chosen:
                if at < len(arm.seeds):
                    yield arm.task(*arm.seeds[at], self.patches, thin=self.study.keep == "weights")

    def tuned(self, best: Mapping[str, Mapping[str, object]]) -> list[Arm]:
        """Builds the arms of `best`, each at its own best point of the tuning grid."""
        found = []
        for arm in self.of_role("base", "arm"):
            if arm.name in best:
                at = next(layer for point, layer in self.build.grid() if point == best[arm.name])
                varied = self.build.vary(arm, at, name=f"{arm.name} (tuned)", role="tuned")
                found.append(replace(varied, point=dict(best[arm.name])))
        return found


def make_plan(
    file: Path,
    *,
    scale: str | None = None,
    overrides: Sequence[str] = (),
    seeds: Sequence[tuple[int, int]] | SeedSection | None = None,
    budget: str | None = None,
    only: Sequence[str] = (),
    patches: Sequence[Path] = (),
    costs: Costs | None = None,
) -> Plan:
    """Plans the study of an ablation manifest.

    `scale`, `overrides`, `seeds` and `budget` come from the command line and win over the file. `only` selects the arms
    to run now, by name or pattern. For `match = "seconds"`, `costs` returns the step time of each arm relative to the
    baseline's.

    Raises one ManifestError with the faults of every arm; UsageError if `only` names an unknown arm, if `seeds`
    contains a tuning seed, or if the budget is without seeds as needed.
    """
    study, layer = read_ablation(file)
    return plan_of(
        _with_seeds(study, seeds, budget, layer), layer, scale=scale, overrides=overrides, only=only, patches=patches,
        costs=costs,
    )  # fmt: skip


def _with_seeds(
    study: AblationManifest, seeds: Sequence[tuple[int, int]] | SeedSection | None, budget: str | None, layer: Layer
) -> AblationManifest:
    """Returns the study with the seeds and the budget of the command line. Raises UsageError."""
    if seeds is not None and not isinstance(seeds, SeedSection):
        seeds = SeedSection(init=tuple(init for init, _ in seeds), data=tuple(data for _, data in seeds))
    kept = study.budget if not seeds or seeds.as_needed else None
    changed = study.model_copy(update={"seed": seeds or study.seed, "budget": budget or kept})
    try:
        StudyBudget.of(changed.budget or "1h")
    except ValueError as error:
        raise UsageError(f"--budget: {error}") from None
    if study.tune and {*changed.seed.pairs} & {*study.tune.seed.pairs}:
        raise UsageError(f"--seeds: {layer.label} tunes on some of these; a verdict needs others")
    if changed.seed.as_needed and study.tune:
        raise UsageError(f"--seeds: {layer.label} tunes, which needs a list of seeds")
    if changed.budget and not changed.seed.as_needed:
        raise UsageError(f"--budget: {layer.label} has a list of seeds; --seeds 3..40 takes as many as needed")
    return changed


def plan_of(
    study: AblationManifest,
    layer: Layer,
    *,
    scale: str | None = None,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    patches: Sequence[Path] = (),
    costs: Costs | None = None,
) -> Plan:
    """Plans a study; `layer` is its file, or the layer that stands for one. Arguments and errors as in `make_plan`."""
    pairs = tuple(study.seed.pairs)
    if only and study.seed.as_needed:
        raise UsageError(
            "--only: with seeds as needed all arms share one budget; expected --seeds with a list beside it"
        )
    build = ArmBuilder(study, layer, scale, tuple(overrides), pairs, tuple(patches))
    faults, arms = [], []
    for draft in build.drafts():
        try:
            arms.append(build.arm(draft))
        except ManifestError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    if faults:
        raise ManifestError(faults)
    arms = build.matched(_without_repeats(arms), costs)
    faults = [
        *_same_named_patches(arms, layer),
        *_uncounted(arms[0], study, layer),
        *_twins(arms, layer),
        *_unlike(arms, layer),
        *_too_few_evaluations(arms, study, layer),
    ]
    if faults:
        raise ManifestError(faults)
    arms = [*build.controlled(arms), *build.ruler(arms[0]), *build.tunings(arms)]
    return Plan(
        study, layer.label, tuple(arms), pairs, tuple(patches), _asked(arms, only), build, folder=layer.path.parent
    )


def _without_repeats(arms: Sequence[Arm]) -> list[Arm]:
    """Drops repeats of an arm with the same name and recipe, such as the baseline matched again by a pattern."""
    seen: dict[tuple[str, str], Arm] = {}
    for arm in arms:
        seen.setdefault((arm.name, arm.recipe), arm)
    return list(seen.values())


def _same_named_patches(arms: Sequence[Arm], layer: Layer) -> Iterator[Fault]:
    """Yields a fault for a kind that two arms take from unlike files: a process holds one module of a name."""
    seen: dict[str, Path] = {}
    for arm in arms:
        beside = {file.parent / "patches" for file in arm.source_of(*arm.seeds[0]).files}
        for kind in arm.manifest.patch:
            for file in sorted(folder / f"{kind}.py" for folder in beside):
                if not file.exists() or file.read_bytes() == (other := seen.setdefault(kind, file)).read_bytes():
                    continue
                yield Fault(layer.label, arm.name, f"{file} and {other} have one name; rename one, and its kind")


def _uncounted(base: Arm, study: AblationManifest, layer: Layer) -> Iterator[Fault]:
    """Yields a fault if the study's budget is in tokens and that of a run is not."""
    if study.budget and StudyBudget.of(study.budget).resource == "tokens" and base.tokens is None:
        message = f"is {study.budget}, but a run's budget is in seconds; expected time, such as 30m"
        yield Fault(layer.where("budget"), "budget", message)


def _twins(arms: Sequence[Arm], layer: Layer) -> Iterator[Fault]:
    names: dict[str, Arm] = {}
    recipes: dict[str, Arm] = {}
    for arm in arms:
        if (other := names.setdefault(arm.name, arm)) is not arm:
            yield Fault(layer.label, arm.name, "two different arms have this name; rename one by [arm.NAME]")
        elif (other := recipes.setdefault(arm.recipe, arm)) is not arm and not told_twins(arm, other):
            yield Fault(layer.label, arm.name, f"trains the same as {other.name}; take one out, or change it")


def told_twins(arm: Arm, other: Arm) -> bool:
    """Whether the manifests declare the two arms the same through `same_as`, directly or through a third id."""
    one, two = arm.manifest, other.manifest
    return one.id != two.id and bool(_equals(one) & _equals(two))


def _equals(manifest: Manifest) -> set[str]:
    """Returns the manifest's own id and the chain of ids that `same_as` leads to."""
    found, name = {manifest.id}, manifest.same_as
    while name and name not in found:
        found.add(name)
        try:
            name = parse_file(find_manifest(name)).tree.get("same_as")
        except (MissingError, ManifestError):  # no manifest here has this id
            break
    return found


def _unlike(arms: Sequence[Arm], layer: Layer) -> Iterator[Fault]:
    base, *others = arms
    for key in _SHARED:
        wanted = _at(base.manifest, key)
        for arm in others:
            if (value := _at(arm.manifest, key)) != wanted:
                message = f"{key} is {value} here and {wanted} in {base.name}; losses would not be comparable"
                yield Fault(layer.label, arm.name, message)


def _too_few_evaluations(arms: Sequence[Arm], study: AblationManifest, layer: Layer) -> Iterator[Fault]:
    """Yields a fault if the metric averages more evaluations than a run makes."""
    last = study.metric.last
    for arm in arms if last > 1 else ():
        steps, every = steps_total(arm.manifest), arm.manifest.eval.every
        made = 1 if not every or steps is None else -(-steps // every)
        if made < last:
            where = f"{layer.label}:{layer.lines.get(('metric',), 1)}"
            message = f"is {last}, but {arm.name} is evaluated {made} times; set.eval.every says how often"
            yield Fault(where, "metric.last", message)
            return


def _at(manifest: Manifest, key: str) -> object:
    value: object = manifest
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _asked(arms: Sequence[Arm], only: Sequence[str]) -> frozenset[str]:
    """Returns the names of the arms to run: the baseline, the arms that `only` matches by name or pattern, their
    controls and tuning arms. An empty `only` selects all. Raises UsageError for a word that matches no arm."""
    base, *others = arms
    for word in only:
        if not any(fnmatchcase(arm.name, word) for arm in arms):
            names = ", ".join(arm.name for arm in arms if arm.role in ("base", "arm"))
            raise UsageError(f"--only {word}: no such arm; the arms are {names}")
    if not only:
        return frozenset(arm.name for arm in arms)
    named = {arm.name for arm in others if any(fnmatchcase(arm.name, word) for word in only)} | {base.name}
    serving = {arm.control for arm in others if arm.name in named and arm.control}
    serving |= {arm.name for arm in others if arm.role == "tuning" and arm.of in named}
    return frozenset(named | serving)
