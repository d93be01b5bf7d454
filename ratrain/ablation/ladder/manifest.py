"""The ladder manifest: the keys of a study, and the rungs at which it is run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ratrain.ablation.budget import EXPECTED, StudyBudget
from ratrain.ablation.manifest import AblationManifest, ArmSection, validated
from ratrain.config.find import find_among, ladders
from ratrain.config.parse import Layer, parse_file
from ratrain.config.schema import Section

FEWEST = 4  # rungs: a line through two of them, and two to judge it by
FEWEST_SEEDS = 3
DECADES = 2.0  # of compute from the first rung to the last


class Rungs(Section):
    """The rungs, from the smallest on: sizes of the baseline by one rule, or overlays of sizes by name."""

    params: tuple[PositiveFloat, ...] = Field(
        default=(), description="parameters of the baseline at each rung, as `ratrain check` counts them"
    )
    scales: tuple[str, ...] = Field(default=(), description="in place of params: an overlay of sizes for each rung")
    tokens_per_param: PositiveFloat | None = Field(default=None, description="training tokens over parameters")
    tokens: tuple[PositiveFloat, ...] = Field(default=(), description="in its place: training tokens of each rung")
    aspect: PositiveFloat | None = Field(
        default=None, description="params: n_embd over n_layer; unset: that of the ladder's scale"
    )
    layers: tuple[PositiveInt, ...] = Field(default=(), description="params: in place of aspect, n_layer of each rung")
    head_dim: PositiveInt | None = Field(default=None, description="params: channels of a head; unset: as the scale")
    batch: tuple[PositiveInt, ...] = Field(default=(), description="sequences per step of each rung; unset: the same")
    seeds: tuple[int, ...] = Field(default=(), description="seeds of each rung, 1, 2, 3 and so on; unset: as in seed")
    noise: tuple[PositiveFloat, ...] = Field(
        default=(),
        description="for `ratrain plan`: standard deviation of a paired difference, in parts of the tokens",
    )
    budgets: tuple[str, ...] = Field(
        default=(), description=f"seeds as needed: what each rung may spend; {EXPECTED}; unset: up to seed.max"
    )

    @property
    def count(self) -> int:
        return len(self.params or self.scales)

    @model_validator(mode="after")
    def _one_rule(self):
        if bool(self.params) == bool(self.scales):
            raise ValueError("expected either params = [...] or scales = [...]")
        if self.count < FEWEST:
            raise ValueError(f"there are {self.count} rungs; a trend needs {FEWEST} or more")
        if self.params and (self.tokens_per_param is None) == (not self.tokens):
            raise ValueError("params needs either tokens_per_param or tokens = [...], one for each rung")
        if self.tokens and self.tokens_per_param is not None:
            raise ValueError("expected tokens_per_param or tokens, not both")
        if self.scales and (self.aspect is not None or self.layers or self.head_dim is not None):
            raise ValueError("aspect, layers and head_dim are for params; scales have their own shapes")
        if self.aspect is not None and self.layers:
            raise ValueError("expected aspect or layers, not both")
        return self

    @model_validator(mode="after")
    def _as_many(self):
        for name in ("tokens", "layers", "batch", "seeds", "noise", "budgets"):
            if (given := len(getattr(self, name))) not in (0, self.count):
                raise ValueError(f"{name} has {given} values for {self.count} rungs; expected one for each")
        if self.seeds and min(self.seeds) < FEWEST_SEEDS:
            raise ValueError(f"seeds is {min(self.seeds)} at a rung; expected {FEWEST_SEEDS} or more at each")
        if list(self.params) != sorted(set(self.params)):
            raise ValueError("params are not in rising order; expected the smallest rung first")
        return self

    @field_validator("budgets")
    @classmethod
    def _are_budgets(cls, budgets: tuple[str, ...]) -> tuple[str, ...]:
        for text in budgets:
            StudyBudget.of(text)
        return budgets


class LadderArm(ArmSection):
    """An arm of a ladder; `tokens` gives it other budgets than the baseline, to plant a known effect."""

    tokens: PositiveFloat | tuple[PositiveFloat, ...] = Field(
        default=1.0, description="training tokens over those of the baseline, at all rungs or at each"
    )


class LadderManifest(AblationManifest):
    """A ladder: a study at each of several rungs, and the trend of each arm's gain from the smallest to the largest."""

    rungs: Rungs
    ruler: tuple[PositiveFloat, ...] = Field(
        default=(0.7, 1.4), description="budgets of the baseline, in parts of a rung's, by which effects are tokens"
    )
    arm: Mapping[str, LadderArm] = Field(default={}, description="manifests with keys changed, by the arm's name")

    @model_validator(mode="after")
    def _fits_a_ladder(self):
        if self.budget:
            raise ValueError("budget is of one study; expected rungs.budgets = [...], one for each rung")
        if not (self.ruler and min(self.ruler) < 1 < max(self.ruler)):
            raise ValueError("ruler needs two budgets beside 1, one below and one above it: gains are read in tokens")
        if self.verdict.stop:
            raise ValueError("verdict.stop ends runs by their effect, which the trend would inherit; expected no stop")
        if self.rungs.budgets and not self.seed.as_needed:
            raise ValueError("rungs.budgets limit seeds as needed; expected seed = { min = 3, max = 40 } beside them")
        if self.rungs.seeds and ("seed" in self.model_fields_set):
            raise ValueError("expected seed or rungs.seeds, not both")
        if not self.rungs.seeds and not self.seed.as_needed and len(self.seed.pairs) < FEWEST_SEEDS:
            raise ValueError(f"seed has {len(self.seed.pairs)} seeds; a rung needs {FEWEST_SEEDS} or more")
        for name, arm in self.arm.items():
            if isinstance(arm.tokens, tuple) and len(arm.tokens) != self.rungs.count:
                given = f"arm.{name}.tokens has {len(arm.tokens)} values for {self.rungs.count} rungs"
                raise ValueError(f"{given}; expected one for each")
        return self

    def tokens_of(self, arm: str, rung: int) -> float:
        """Returns the tokens of an arm over the baseline's, at a rung counted from 0."""
        tokens = self.arm[arm].tokens
        return tokens[rung] if isinstance(tokens, tuple) else tokens


def find_ladder(name: str) -> Path:
    """Finds the ladder manifest `name`: a path, or the name of a shipped one. Raises MissingError."""
    return find_among(name, ladders(), "ladder")


def is_ladder(path: Path) -> bool:
    """Whether the file describes a ladder. Raises ManifestError if it cannot be parsed."""
    return "rungs" in parse_file(path).tree


def read_ladder(path: Path) -> tuple[LadderManifest, Layer]:
    """Reads the ladder of a file, and the file as a layer. Raises ManifestError with every fault."""
    layer = parse_file(path)
    if "rungs" not in layer.tree:
        raise layer.fault("this file has no rungs; a study is run with --ablate, a variant without an option")
    return validated(layer, LadderManifest), layer


def decades(compute: list[float]) -> float:
    """Returns the decades from the first rung's compute to the last's."""
    return math.log10(compute[-1] / compute[0])


def rung_table(layer: Layer, rung: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> Layer:
    """Returns the ladder's file as that of one rung's study: `rung` in its `set`, `arms` in those of its arms."""
    tree = {key: value for key, value in layer.tree.items() if key != "rungs"}
    tree["set"] = _over(tree.get("set", {}), rung)
    own = {}
    for name, arm in tree.get("arm", {}).items():
        kept = {key: value for key, value in arm.items() if key != "tokens"}
        own[name] = {**kept, "set": _over(kept.get("set", {}), arms.get(name, {}))}
    return Layer(layer.label, {**tree, "arm": own} if own else tree, layer.path, layer.lines)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merges tables key by key; `above` wins."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
