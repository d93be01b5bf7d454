"""Plans a ladder: the study of every rung, from one file."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ratrain.ablation.arms import Costs, resolved
from ratrain.ablation.ladder.manifest import DECADES, FEWEST_SEEDS, LadderManifest, decades, read_ladder, rung_table
from ratrain.ablation.ladder.sizes import Shape, Sizes
from ratrain.ablation.manifest import AblationManifest, ArmSection, Seeds, changes
from ratrain.ablation.plan import Plan, plan_of
from ratrain.config.find import find_manifest
from ratrain.config.parse import Layer, keys_of, parse_override
from ratrain.config.read import read_source
from ratrain.config.resolve import steps_total, tokens_per_step
from ratrain.config.schema import Manifest, ModelSpec
from ratrain.errors import MissingError, UsageError


@dataclass(frozen=True)
class Rung:
    """One rung: the study that is run there, and the baseline's size and training FLOPs."""

    number: int  # from 1
    plan: Plan

    @property
    def spec(self) -> ModelSpec:
        return self.plan.base.manifest.model

    @property
    def parameters(self) -> int:
        return self.plan.base.built.parameters

    @property
    def tokens(self) -> int:
        return self.plan.base.tokens or 0

    @property
    def flops(self) -> float:
        """FLOPs of one training run of the baseline."""
        return float(self.plan.base.built.train_flops_per_token) * self.tokens


@dataclass(frozen=True)
class LadderPlan:
    """The plan of a ladder; `command` repeats it."""

    ladder: LadderManifest
    file: str
    rungs: tuple[Rung, ...]
    command: str = ""

    @property
    def rates(self) -> str:
        return rates_of(self.ladder, self.rungs[0].plan.base.manifest)


def rates_of(ladder: LadderManifest, base: Manifest) -> str:
    """Returns how the learning rates of the rungs were chosen: "tuned", "transferred (completep)" or "the same"."""
    if ladder.tune and ("schedule", "lr") in keys_of(ladder.tune.grid):
        return "tuned"
    kind = base.model.parametrisation
    return f"transferred ({kind})" if kind != "standard" else "the same"


def make_ladder(
    file: Path,
    *,
    overrides: Sequence[str] = (),
    seeds: Seeds | Sequence[tuple[int, int]] | None = None,
    only: Sequence[str] = (),
    patches: Sequence[Path] = (),
    costs: Costs | None = None,
) -> LadderPlan:
    """Plans the ladder of a file; `overrides` and `seeds` come from the command line, for every rung.

    `costs` returns step times for `match = "seconds"`, as for `make_plan`.

    Raises ManifestError with the faults of the first rung that has any, and for rungs that span less than two decades
    of compute or are not in rising order of it; UsageError as `make_plan` does, and for overrides of a rung's sizes.
    """
    ladder, layer = read_ladder(file)
    _require_unsized(ladder, layer, overrides)
    if seeds is not None and not isinstance(seeds, Seeds):
        seeds = Seeds(init=tuple(init for init, _ in seeds), data=tuple(data for _, data in seeds))
    if seeds and not seeds.as_needed and len(seeds.pairs) < FEWEST_SEEDS:
        raise UsageError(f"--seeds: a rung needs {FEWEST_SEEDS} or more, got {len(seeds.pairs)}")
    draft = _Draft(ladder, layer, tuple(overrides), tuple(patches))
    rungs = []
    for at in range(ladder.rungs.count):
        study, table = draft.study(at, seeds)
        plan = plan_of(study, table, overrides=overrides, only=only, patches=patches, costs=costs)
        command = shlex.join(["ratrain", "--ladder", layer.label, "--rung", str(at + 1)])
        asked = plan.asked | {arm.name for arm in plan.of_role("ruler")}  # without it no gain is read
        rungs.append(Rung(at + 1, replace(plan, command=command, asked=asked)))
    if not rungs[0].plan.of_role("arm"):
        raise layer.fault("there is no arm beside the baseline; expected arms = [...] or [arm.NAME]", "arms")
    _require_rise(rungs, layer)
    _require_ruler(rungs, layer)
    return LadderPlan(ladder, layer.label, tuple(rungs))


_SHAPE = (("model", "n_layer"), ("model", "n_embd"), ("model", "n_head"))
_BUDGET, _BATCH = ("train", "budget"), ("train", "batch")


def _require_unsized(ladder: LadderManifest, layer: Layer, overrides: Sequence[str]) -> None:
    """Raises UsageError for overrides of keys that the rungs set, ManifestError for such keys in the file."""
    rungs = ladder.rungs
    budget = rungs.tokens or rungs.tokens_per_param
    ours = [("scale",), *(_SHAPE if rungs.params else ()), *([_BUDGET] if budget else [])]
    ours += [_BATCH] if rungs.batch else []
    for text in overrides:
        if any(_within(key, ours) for key in keys_of(parse_override(text).tree)):
            raise UsageError(f"--set {text}: the rungs set it; change rungs in {layer.label}")
    arms = [(("arm", name, "set"), arm.get("set", {})) for name, arm in layer.tree.get("arm", {}).items()]
    for at, table in [(("set",), layer.tree.get("set", {})), *arms]:
        for key in sorted(keys_of(table)):
            if _within(key, ours):
                raise layer.fault("the rungs set it; change it in rungs", *at, *key)
            if len(at) > 1 and _within(key, [_BUDGET]):
                raise layer.fault("expected tokens of the arm, in parts of the baseline's, in its place", *at, *key)


def _within(key: tuple[str, ...], tables: Sequence[tuple[str, ...]]) -> bool:
    return any(key[: len(table)] == table for table in tables)


def _require_rise(rungs: Sequence[Rung], layer: Layer) -> None:
    compute = [rung.flops for rung in rungs]
    told = ", ".join(f"{flops:.3g}" for flops in compute)
    if not all(rung.tokens for rung in rungs):
        raise layer.fault("a rung's budget is in seconds; expected tokens, so that compute is the same anywhere", "set")
    if any(low >= high for low, high in itertools.pairwise(compute)):
        raise layer.fault(f"training FLOPs of the rungs are {told}; expected each above the one before", "rungs")
    if (span := decades(compute)) < DECADES:
        message = f"training FLOPs of the rungs are {told}, {span:.1f} decades; expected {DECADES:g} or more"
        raise layer.fault(message, "rungs")


def _require_ruler(rungs: Sequence[Rung], layer: Layer) -> None:
    """Raises ManifestError if budgets of the ruler are the same in whole steps."""
    for rung in rungs:
        tokens = [arm.tokens for arm in rung.plan.of_role("base", "ruler")]
        if len({*tokens}) < len(tokens):
            told = ", ".join(f"{count:,}" for count in tokens if count)
            raise layer.fault(
                f"rung {rung.number} has budgets of {told} tokens in whole steps; expected others", "ruler"
            )


@dataclass(frozen=True)
class _Size:
    """What a rung sets in every manifest, the tokens of its runs, and those of a step."""

    sections: dict[str, Any]
    tokens: float
    per_step: int

    def budget(self, factor: float) -> dict[str, Any]:
        """Returns the budget of `factor` times the rung's tokens in whole steps, one at least."""
        steps = max(1, round(self.tokens / self.per_step))
        return {"budget": {"tokens": max(1, round(factor * steps)) * self.per_step}}


@dataclass(frozen=True)
class _Draft:
    """Makes the study of each rung, counted from 0, from the ladder's file."""

    ladder: LadderManifest
    layer: Layer
    overrides: tuple[str, ...]
    patches: tuple[Path, ...]

    def study(self, at: int, seeds: Seeds | None) -> tuple[AblationManifest, Layer]:
        """Returns the study of a rung, and the file that stands for it."""
        ladder, rungs, size = self.ladder, self.ladder.rungs, self._size(at)
        sizes = {**size.sections, "scale": f"rung{at + 1}"}
        if size.tokens:
            sizes["train"] = {**sizes["train"], **size.budget(1)}
        planted = {name: tokens for name in ladder.arm if (tokens := ladder.tokens_of(name, at)) != 1}
        table = rung_table(self.layer, sizes, {name: {"train": size.budget(t)} for name, t in planted.items()})
        own = Seeds(init=tuple(range(1, rungs.seeds[at] + 1))) if rungs.seeds else ladder.seed
        said = {name: getattr(ladder, name) for name in AblationManifest.model_fields if name not in ("arm", "set")}
        said |= {
            "id": ladder.id, "title": f"{ladder.title or ladder.id}, rung {at + 1}",
            "scale": rungs.scales[at] if rungs.scales else ladder.scale,
            "seed": seeds or own, "budget": rungs.budgets[at] if rungs.budgets and (seeds or own).as_needed else None,
        }  # fmt: skip
        arms = {
            name: ArmSection(manifest=arm.manifest, set=table.tree["arm"][name]["set"], grid=arm.grid)
            for name, arm in ladder.arm.items()
        }
        try:
            return AblationManifest(**said, arm=arms, set=table.tree["set"]), table
        except ValidationError as error:  # seeds of the rung beside keys that the ladder's own seeds fit
            message = "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())
            if seeds:
                raise UsageError(f"--seeds: {message}") from None
            raise self.layer.fault(message, "rungs") from None

    def _size(self, at: int) -> _Size:
        """Raises ManifestError for a planted budget without a budget in tokens."""
        rungs, before = self.ladder.rungs, self._base(at)
        batch = rungs.batch[at] if rungs.batch else before.train.batch
        micro = before.train.micro_batch
        sections: dict[str, Any] = {"train": {"batch": batch, "micro_batch": micro if batch % micro == 0 else batch}}
        if rungs.params:
            sections["model"] = asdict(self._shape(at, before.model))
        sized = self._base(at, sections)
        per_step = tokens_per_step(sized)
        if rungs.tokens:
            return _Size(sections, rungs.tokens[at], per_step)
        if rungs.tokens_per_param:
            return _Size(sections, rungs.tokens_per_param * _parameters(sized), per_step)
        return _Size(sections, (steps_total(sized) or 0) * per_step, per_step)

    def _shape(self, at: int, spec: ModelSpec) -> Shape:
        rungs = self.ladder.rungs
        head_dim = rungs.head_dim or spec.head_dim

        def parameters(n_layer: int, n_embd: int) -> int:
            return _parameters(self._base(at, {"model": asdict(Shape(n_layer, n_embd, n_embd // head_dim))}))

        return Sizes.of(parameters, head_dim).shape(
            rungs.params[at], head_dim=head_dim, aspect=rungs.aspect or spec.n_embd / spec.n_layer,
            n_layer=rungs.layers[at] if rungs.layers else None,
        )  # fmt: skip

    def _base(self, at: int, sizes: dict[str, Any] | None = None) -> Manifest:
        """Resolves the baseline of a rung with these sizes. Raises ManifestError."""
        ladder = self.ladder
        try:
            file = find_manifest(ladder.base)
        except MissingError as error:
            raise self.layer.fault(str(error), "base") from None
        scale = ladder.rungs.scales[at] if ladder.rungs.scales else ladder.scale
        layers = [changes(self.layer, "set"), *self.overrides, Layer(self.layer.label, sizes or {})]
        return resolved(read_source(file, scale=scale, overrides=layers), self.patches)


def _parameters(manifest: Manifest) -> int:
    from ratrain.run.check import check

    return check(manifest).parameters
