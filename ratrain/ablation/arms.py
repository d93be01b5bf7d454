"""The arms of a study: those named in its file, and the derived ones (controls, ruler, tuning, tuned)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ratrain.ablation.manifest import AblationManifest, changes, points
from ratrain.config.catalogue import catalogue
from ratrain.config.find import find_manifest
from ratrain.config.identity import plain, recipe_hash, run_folder
from ratrain.config.parse import Layer
from ratrain.config.read import Source, read_source
from ratrain.config.resolve import resolve, steps_total, tokens_per_step
from ratrain.config.schema import Manifest
from ratrain.errors import MissingError
from ratrain.registry import declared, optim_kinds, patch_kinds

if TYPE_CHECKING:
    from ratrain.run.check import Checked

_WORTH = 1.005  # below half a percent more parameters or FLOPs an arm needs no control

_STUDIED = ("optim", "prune", "patch", "activation")  # sections of `set` that win over a scale from the command line

# base: the reference of all arms; arm: a variant under test; control: the base widened to a costly arm; ruler: the base
# at another budget; tuning: an arm at a point of the tuning grid; tuned: an arm at its own best point
Role = Literal["base", "arm", "control", "ruler", "tuning", "tuned"]
Seeds = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Arm:
    """One arm of a study: its name, its merged manifest for each pair of seeds, and the checked model."""

    name: str
    point: dict[str, object]  # grid keys and their values for this arm
    source_of: Callable[..., Source]  # takes seed.init, seed.data, and layers over all others
    manifest: Manifest  # of the first pair of seeds
    built: Checked
    recipe: str
    seeds: Seeds
    role: Role = "arm"
    of: str = ""  # the arm that a tuning or a tuned one varies
    control: str = ""  # the arm of equal cost

    def folder(self, init: int, data: int) -> str:
        """The folder of the run with these seeds, below the folder of runs."""
        seed = self.manifest.seed.model_copy(update={"init": init, "data": data})
        return run_folder(self.manifest.model_copy(update={"seed": seed}))

    def task(self, init: int, data: int, patches: tuple[Path, ...], *, thin: bool = False) -> Task:
        """Builds the run with these seeds."""
        source, folder = self.source_of(init, data), self.folder(init, data)
        return Task(self.name, init, data, source, patches, folder, _graphs(self.manifest), thin)

    @property
    def tokens(self) -> int | None:
        """The token budget; None if the budget is in seconds."""
        steps = steps_total(self.manifest)
        return None if steps is None else steps * tokens_per_step(self.manifest)


@dataclass(frozen=True)
class Task:
    """One run of a study, in a form that can be pickled for another process."""

    arm: str
    init: int
    data: int
    source: Source
    patches: tuple[Path, ...]
    folder: str  # below the folder of runs
    graphs: str = ""  # digest; equal for runs that compile the same graphs
    thin: bool = False  # whether the run keeps only its last weights

    def manifest(self) -> Manifest:
        """Resolves the manifest in the calling process, since the classes of kinds cannot be pickled."""
        return resolved(self.source, self.patches)


def name_of(study: AblationManifest, base: Arm) -> str:
    """The name of a study's folder."""
    return f"{study.id}-{base.manifest.scale}"


Costs = Callable[[str, Sequence[Task]], Mapping[str, float]]  # takes the study's name and a run per arm


@dataclass(frozen=True)
class Draft:
    """An arm before resolution; an empty `name` means that the manifest's id names the arm."""

    name: str
    manifest: str
    at: tuple[str, ...]  # the key that names it
    point: dict[str, object]
    layers: tuple[Layer, ...]  # over the study's `set`, below overrides from the command line
    role: Role = "arm"


@dataclass(frozen=True)
class ArmBuilder:
    """Builds the arms of a study from its manifest."""

    study: AblationManifest
    layer: Layer
    scale: str | None  # replaces the study's scale, and wins over its `set` except for _STUDIED
    overrides: tuple[str, ...]
    seeds: Seeds
    patches: tuple[Path, ...]

    def drafts(self) -> Iterator[Draft]:
        """Yields a draft per arm of the file, the baseline's first."""
        study, layer = self.study, self.layer
        ema = self._said({"eval": {"ema": study.metric.ema}}, "metric") if study.metric.ema else None
        shared = tuple(filter(None, [ema]))
        yield Draft("", study.base, ("base",), {}, shared, "base")
        for word in study.arms:
            for name in _ids_like(word, layer):
                yield Draft("", name, ("arms",), {}, shared)
        for name, arm in study.arm.items():
            own = changes(layer, "arm", name, "set")
            for point, at in points(changes(layer, "arm", name, "grid")):
                label = _label(name, point)
                yield Draft(label, arm.manifest, ("arm", name, "manifest"), point, (*shared, own, at))

    def arm(self, draft: Draft) -> Arm:
        try:
            file = find_manifest(draft.manifest)
        except MissingError as error:
            raise self.layer.fault(str(error), *draft.at) from None

        under, over = self._shared()

        def source_of(init: int, data: int, *later: Layer) -> Source:
            seed = self._said({"seed": {"init": init, "data": data}}, "seed")
            overrides = [over, *draft.layers, *self.overrides, *later, seed]
            return read_source(file, changes=[under], scale=self.scale or self.study.scale, overrides=overrides)

        return self._made(draft.name, draft.point, source_of, self.seeds, draft.role)

    def _shared(self) -> tuple[Layer, Layer]:
        """Splits the study's `set` into a layer below a scale from the command line, and a layer above any scale."""
        layer = changes(self.layer, "set")
        below = {name: value for name, value in layer.tree.items() if self.scale is not None and name not in _STUDIED}
        above = {name: value for name, value in layer.tree.items() if name not in below}
        return replace(layer, tree=below), replace(layer, tree=above)

    def vary(self, arm: Arm, *later: Layer, name: str, role: Role, seeds: Seeds = ()) -> Arm:
        """Returns the arm with more layers over its own."""
        source = arm.source_of
        made = self._made(name, {}, lambda *words: source(*words[:2], *later, *words[2:]), seeds or arm.seeds, role)
        return replace(made, of=arm.name)

    def _made(self, name: str, point: dict[str, object], source_of: Any, seeds: Seeds, role: Role) -> Arm:
        source = source_of(*seeds[0])
        declared(source, patch_kinds(self.patches, beside=source.files))  # refuses before torch is imported
        from ratrain.run.check import check

        manifest = resolved(source, self.patches)
        recipe = recipe_hash(manifest)
        return Arm(name or manifest.id, point, source_of, manifest, check(manifest), recipe, seeds, role)

    def _said(self, tree: dict[str, Any], *key: str) -> Layer:
        """Wraps `tree` as a manifest layer located at the study's key."""
        line = self.layer.lines.get(key, 1)
        return Layer(self.layer.label, tree, lines={(name,): line for name in tree})

    # -- derived arms -------------------------------------------------------------------------------------------

    def matched(self, arms: list[Arm], costs: Costs | None) -> list[Arm]:
        """Adjusts the arms so that they equal the baseline in the quantity that `match` names. Raises ManifestError if
        `match` needs a budget in tokens or steps and the budget is in seconds."""
        from ratrain.run.widen import widen

        base, study, match = arms[0], self.study, self.study.match
        if match == "tokens":
            return arms
        if match in ("flops", "seconds") and base.tokens is None:
            message = f"{match!r} changes budgets in tokens or steps, and this one is in seconds"
            raise self.layer.fault(message, "match")
        tasks = [arm.task(*arm.seeds[0], self.patches) for arm in arms]
        step = costs(name_of(study, base), tasks) if match == "seconds" and costs else {}
        found = [base]
        for arm in arms[1:]:
            if match == "parameters":
                ratio = widen(base.manifest, arm.manifest, by="parameters").manifest.model.mlp_ratio
                tree = {"model": {"mlp_ratio": ratio}}
                same = ratio == arm.manifest.model.mlp_ratio
            else:
                cost = step.get(arm.name, 1.0)
                if match == "flops":
                    cost = arm.built.train_flops_per_token / base.built.train_flops_per_token
                tree, same = {"train": {"budget": _budget(arm, 1 / cost)}}, cost == 1
            kept = self.vary(arm, self._said(tree, "match"), name=arm.name, role=arm.role)
            found.append(arm if same else replace(kept, of="", point=arm.point))
        return found

    def controlled(self, arms: list[Arm]) -> list[Arm]:
        """Appends a widened baseline for each arm with more parameters or FLOPs; arms of the same width share one."""
        if not self.study.controls:
            return arms
        from ratrain.run.widen import widen

        base, found = arms[0], list(arms)
        for at, arm in enumerate(arms):
            ways = [widen(arm.manifest, base.manifest, by=by) for by in ("parameters", "flops")]
            width = max(way.manifest.model.n_hidden for way in ways)
            if at == 0 or max(way.goal / way.own for way in ways) < _WORTH or width <= base.manifest.model.n_hidden:
                continue
            ratio = width / base.manifest.model.n_embd
            wide = self.vary(
                base, self._said({"model": {"mlp_ratio": ratio}}, "controls"),
                name=f"{base.name} hidden={width}", role="control",
            )  # fmt: skip
            known = next((other for other in found if other.recipe == wide.recipe), None)
            found += [] if known else [wide]
            if known is not arm:
                found[at] = replace(arm, control=(known or wide).name)
        return found

    def ruler(self, base: Arm) -> list[Arm]:
        """Builds the baseline at the other budgets of the ruler; with seeds as needed, on the first of them alone."""
        seeds = self.seeds[: self.study.seed.min] if self.study.seed.as_needed else self.seeds
        factors = [factor for factor in self.study.ruler if factor != 1]
        return [
            self.vary(
                base, self._said({"train": {"budget": _budget(base, factor)}}, "ruler"),
                name=f"{base.name} x{factor:g}", role="ruler", seeds=seeds,
            )
            for factor in factors
        ]  # fmt: skip

    def grid(self) -> Iterator[tuple[dict[str, object], Layer]]:
        yield from points(changes(self.layer, "tune", "grid")) if self.study.tune else ()

    def tunings(self, arms: Sequence[Arm]) -> list[Arm]:
        """Builds the baseline and every arm at each point of the tuning grid."""
        tune = self.study.tune
        if not tune:
            return []
        found = []
        for arm in (arm for arm in arms if arm.role in ("base", "arm")):
            for point, layer in self.grid():
                seeds = tuple(tune.seed.pairs)
                made = self.vary(arm, layer, name=_label(f"{arm.name} tuning", point), role="tuning", seeds=seeds)
                found.append(replace(made, point=point))
        return found


def _label(name: str, point: Mapping[str, object]) -> str:
    return " ".join([name, *(f"{key.rpartition('.')[2]}={_word(value)}" for key, value in point.items())])


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _ids_like(word: str, layer: Layer) -> list[str]:
    if not set("*?[") & set(word):
        return [word]
    ids = [entry.id for entry in catalogue() if fnmatchcase(entry.id, word)]
    if not ids:
        raise layer.fault(f"no variant's id fits {word!r}; `ratrain list` shows them all", "arms")
    return ids


def _budget(arm: Arm, factor: float) -> dict[str, float]:
    """Returns the arm's budget times `factor`, in whole steps unless it is in seconds."""
    budget, steps = arm.manifest.train.budget, steps_total(arm.manifest)
    if steps is None:
        return {"seconds": factor * float(budget.seconds or 0)}
    scaled = max(1, round(factor * steps))
    return {"steps": scaled} if budget.steps is not None else {"tokens": scaled * tokens_per_step(arm.manifest)}


def _graphs(manifest: Manifest) -> str:
    """Returns a digest of the settings that determine the compiled graphs."""
    said = plain(manifest)
    facts = [said["model"], said["patch"], said["compile"], [manifest.train.precision, manifest.train.micro_batch]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def resolved(source: Source, patches: Sequence[Path]) -> Manifest:
    """Resolves a source with the patch kinds of the `patches` folders and of the folders beside the manifest's
    files."""
    return resolve(source, patches=patch_kinds(patches, beside=source.files), optimizers=optim_kinds())
