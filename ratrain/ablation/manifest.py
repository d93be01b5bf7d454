"""The ablation manifest: the arms of a study, their baseline, and the seeds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from ratrain.ablation.budget import EXPECTED, StudyBudget
from ratrain.config.find import ablations, find_among
from ratrain.config.merge import Merge
from ratrain.config.parse import Layer, parse_file
from ratrain.config.read import Source
from ratrain.config.schema import Section
from ratrain.config.toml import dotted
from ratrain.config.validation import faults_of, key_homes
from ratrain.errors import Fault, ManifestError

Key = tuple[str, ...]
_M = TypeVar("_M", bound=Section)
_MOST_SEEDS = 1000  # of one arm


class Seeds(Section):
    """The seeds of every arm, one run for each pair of init and data: a list, or as many as needed within limits."""

    init: tuple[NonNegativeInt, ...] = Field(default=(), description="seed.init of each run")
    data: tuple[NonNegativeInt, ...] = Field(default=(), description="seed.data of each run; empty: as init")
    min: int = Field(default=3, ge=3, description="seeds as needed: those before the first look")
    max: int | None = Field(
        default=None,
        ge=1,
        le=_MOST_SEEDS,
        description="seeds as needed: the most that an arm gets, 1, 2, 3 and so on; in place of init",
    )

    @model_validator(mode="after")
    def _one_of(self):
        if (self.max is None) == (not self.init):
            raise ValueError("expected either init = [...], or min and max for as many seeds as needed")
        if self.max is None and "min" in self.model_fields_set:
            raise ValueError("min belongs to max, for as many seeds as needed; expected no min beside init")
        if self.max is not None and (self.data or self.max < self.min):
            raise ValueError(f"max is {self.max} and min {self.min}; expected min <= max, and no data beside them")
        return self

    @model_validator(mode="after")
    def _pairs(self):
        if self.data and len(self.data) != len(self.init):
            raise ValueError(f"init has {len(self.init)} seeds and data {len(self.data)}; each run needs one of both")
        if len(set(self.pairs)) < len(self.pairs):
            raise ValueError("a seed is repeated; expected each seed once")
        return self

    @property
    def as_needed(self) -> bool:
        return self.max is not None

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The pairs in the order of training; with seeds as needed, all that there may be."""
        if self.max is not None:
            return [(seed, seed) for seed in range(1, self.max + 1)]
        return list(zip(self.init, self.data or self.init, strict=True))


class Metric(Section):
    """The metric that arms are judged by, fixed before the first step."""

    last: PositiveInt = Field(default=1, description="mean validation loss of so many evaluations, the last ones")
    ema: float = Field(
        default=0.0, ge=0, lt=1, description="evaluate an average of the weights with this decay per step; 0: none"
    )


class Tune(Section):
    """One tuning grid for every arm, on separate seeds; a second verdict compares arms at their own best points."""

    grid: Mapping[str, Any] = Field(description="keys as in a manifest, each with a list of values")
    seed: Seeds = Field(description="seeds of the tuning runs; none of the study's own")


class ArmSection(Section):
    """A manifest with keys changed; `grid` lists values per key, and every combination becomes an arm."""

    manifest: str = Field(description="path, file name or id")
    set: Mapping[str, Any] = Field(default={}, description="keys as in a manifest")
    grid: Mapping[str, Any] = Field(default={}, description="keys as in a manifest, each with a list of values")


class Verdicts(Section):
    """The rules of verdicts: margin, error rate, its spending over looks, and early stopping."""

    delta: PositiveFloat | None = Field(
        default=None,
        description="nats per token: an arm is equivalent if its difference lies within +-delta; unset: none is",
    )
    alpha: float = Field(default=0.05, gt=0, lt=0.5, description="chance of any false verdict in the whole study")
    spending: Literal["obrien_fleming", "pocock", "linear"] | None = Field(
        default=None,
        description="how alpha is spent over looks: late, early, or evenly; unset: evenly with seeds as needed, else "
        "late",
    )
    stop: bool = Field(default=False, description="an arm that has its verdict runs no more seeds")
    noise: PositiveFloat | None = Field(
        default=None,
        description="nats: standard deviation of a run within its seed at this scale, for the forecast of a dry run",
    )


class AblationManifest(Section):
    """A study: the arms, their baseline, and the settings of all arms."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    title: str = ""
    base: str = Field(default="v0", description="manifest that every arm is compared with: path, file name or id")
    scale: str | None = Field(default=None, description="overlay of sizes for every arm; --scale wins, over set too")
    seed: Seeds = Seeds(init=(1, 2, 3))
    budget: str | None = Field(
        default=None, description=f"seeds as needed: what the study may spend; {EXPECTED}; unset: up to seed.max"
    )
    verdict: Verdicts = Verdicts()
    metric: Metric = Metric()
    match: Literal["tokens", "flops", "parameters", "seconds"] = Field(
        default="tokens",
        description="what arms have in common: training tokens; FLOPs or measured step time, by fewer or more tokens; "
        "parameters, by the width of their MLP",
    )
    controls: bool = Field(
        default=True, description="beside an arm of more parameters or FLOPs, a base as wide as that"
    )
    ruler: tuple[PositiveFloat, ...] = Field(
        default=(), description="budgets of the baseline, in parts of its own, by which effects are read as tokens"
    )
    tune: Tune | None = None
    guard: tuple[str, ...] = Field(
        default=(),
        description="downstream tasks to score finished runs on, beside the verdicts: names of lm-evaluation-harness, "
        "YAML files, folders; TASK:METRIC for another metric than the task's first",
    )
    keep: Literal["weights", "checkpoints"] = Field(
        default="weights", description="of a finished run: the last weights alone, or whole checkpoints"
    )
    arms: tuple[str, ...] = Field(default=(), description="manifests as they are: path, file name, id, pattern of ids")
    arm: Mapping[str, ArmSection] = Field(default={}, description="manifests with keys changed, by the arm's name")
    set: Mapping[str, Any] = Field(default={}, description="keys changed in every arm, the base included")

    @model_validator(mode="after")
    def _has_arms(self):
        if not (self.arms or self.arm):
            raise ValueError("there is nothing to compare; expected arms = [...] or [arm.NAME]")
        return self

    @field_validator("budget")
    @classmethod
    def _is_a_budget(cls, text: str | None) -> str | None:
        if text is not None:
            StudyBudget.of(text)
        return text

    @model_validator(mode="after")
    def _needs_seeds(self):
        if self.budget and not self.seed.as_needed:
            raise ValueError("budget limits seeds as needed; expected seed = { min = 3, max = 40 } beside it")
        if self.seed.as_needed and self.verdict.stop:
            raise ValueError("verdict.stop is for a list of seeds; with seeds as needed arms stop in any case")
        if self.seed.as_needed and self.tune:
            raise ValueError("tune compares all arms on the same seeds; expected seed.init = [...] beside it")
        if self.tune and self.tune.seed.as_needed:
            raise ValueError("tuning runs are fixed in advance; expected tune.seed.init = [...]")
        return self

    @property
    def rule(self) -> Verdicts:
        """The rules of verdicts with their spending."""
        spending = self.verdict.spending or ("linear" if self.seed.as_needed else "obrien_fleming")
        return self.verdict.model_copy(update={"spending": spending})

    @field_validator("guard")
    @classmethod
    def _guards_once(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(words)) < len(words) or not all(word.strip() for word in words):
            raise ValueError("expected each task once, by name or path")
        return words

    @model_validator(mode="after")
    def _tunes_apart(self):
        shared = {*self.seed.pairs} & {*self.tune.seed.pairs} if self.tune else ()
        if shared:
            raise ValueError(
                f"tune.seed and seed share {sorted(shared)[0]}: a verdict would rest on tuning seeds; choose others"
            )
        return self

    @model_validator(mode="after")
    def _has_a_ruler(self):
        if self.ruler and len({*self.ruler, 1.0}) < 3:
            raise ValueError("ruler needs two budgets beside 1, one below it and one above")
        return self


def find_ablation(name: str) -> Path:
    """Finds the ablation manifest `name`: a path, or the name of a shipped one. Raises MissingError if there is
    none."""
    return find_among(name, ablations(), "ablation manifest")


def is_ablation(path: Path) -> bool:
    """Whether the file describes a study, and not a variant. Raises ManifestError if it cannot be parsed."""
    return bool({"arm", "arms"} & {*parse_file(path).tree})


def read_ablation(path: Path) -> tuple[AblationManifest, Layer]:
    """Reads the study of a file, and the file as a layer. Raises ManifestError with every fault."""
    layer = parse_file(path)
    if "rungs" in layer.tree:
        raise layer.fault("this is a ladder, not an ablation; run it with --ladder", "rungs")
    if "model" in layer.tree or "patch" in layer.tree or "extends" in layer.tree:
        raise layer.fault("this is the manifest of a variant, not of an ablation; run it without --ablate")
    return validated(layer, AblationManifest), layer


def validated(layer: Layer, model: type[_M]) -> _M:
    """Reads a file as the model of its keys. Raises ManifestError with every fault."""
    merged = Merge()
    merged.add(Layer(layer.label, layer.tree, layer.path, layer.lines))
    source = Source(layer.tree, merged.origins, (layer.path,), (layer.label,))
    try:
        return model.model_validate_json(json.dumps(layer.tree))
    except ValidationError as error:
        raise ManifestError(faults_of(error, source, model, homes=key_homes(model))) from None


def changes(layer: Layer, *at: str) -> Layer:
    """Returns the table `at` of the ablation manifest as a layer over a manifest, with the line numbers of its file."""
    tree: Any = layer.tree
    for part in at:
        tree = tree.get(part, {})
    lines = {key[len(at) :]: line for key, line in layer.lines.items() if key[: len(at)] == at and len(key) > len(at)}
    return Layer(layer.label, tree, layer.path, lines)


def points(grid: Layer) -> Iterator[tuple[dict[str, Any], Layer]]:
    """Yields every combination of the grid's values, by key and as a layer over a manifest. Raises ManifestError if a
    key has no list of values, or an empty one."""
    axes = dict(_axes(grid, grid.tree, ()))
    for values in itertools.product(*axes.values()):
        tree: dict[str, Any] = {}
        for key, value in zip(axes, values, strict=True):
            _plant(tree, key, value)
        yield {dotted(k): v for k, v in zip(axes, values, strict=True)}, Layer(grid.label, tree, grid.path, grid.lines)


def _axes(grid: Layer, tree: Mapping[str, Any], at: Key) -> Iterator[tuple[Key, list[Any]]]:
    for name, value in tree.items():
        key = (*at, name)
        if isinstance(value, dict):
            yield from _axes(grid, value, key)
        elif isinstance(value, list) and value:
            yield key, value
        else:
            raise ManifestError([Fault(grid.where(*key), dotted(("grid", *key)), "expected a list of values")])


def _plant(tree: dict[str, Any], key: Key, value: Any) -> None:
    for part in key[:-1]:
        tree = tree.setdefault(part, {})
    tree[key[-1]] = value
