"""The record of a ladder: its rungs, fixed before the first step of any run. The studies of the rungs have their own.

`events.jsonl` in the ladder's folder `ladders/<id>` below that of the runs holds one plan.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ratrain.ablation.ladder.plan import LadderPlan, Rung
from ratrain.ablation.record import append, planned
from ratrain.config.schema import Manifest
from ratrain.errors import DataError, Fault, ManifestError, MissingError

_FILE = "events.jsonl"
_NAMES = ("id", "title", "same_as", "origin")  # of a manifest, which its runs do not depend on


@dataclass(frozen=True)
class PlannedRung:
    """One rung: the folder and the plan's hash of its study, and the baseline's size there.

    `flops` is that of one training run of the baseline, `lr` its peak learning rate as the manifest has it.
    """

    number: int
    study: str
    hash: str
    parameters: int
    n_layer: int
    n_embd: int
    n_head: int
    block_size: int
    batch: int
    tokens: int
    flops: float
    lr: float


@dataclass(frozen=True)
class PlannedLadder:
    """A ladder as it is on record; `rates` says how learning rates were chosen, `planted` names arms of known effect.

    `alpha` is the chance of any false claim on its arms, `delta` the difference in nats that does not matter.
    """

    id: str
    title: str
    file: str
    base: str
    rates: str
    alpha: float
    delta: float | None
    planted: tuple[str, ...]
    rungs: tuple[PlannedRung, ...]
    command: str = ""  # not part of the hash
    hash: str = ""


@dataclass(frozen=True)
class Ladder:
    """A ladder's folder and plan."""

    folder: Path
    plan: PlannedLadder

    @property
    def out(self) -> Path:
        """The folder of runs."""
        return self.folder.parents[1]

    def study(self, rung: PlannedRung) -> Path:
        """The folder of a rung's study."""
        return self.out / "studies" / rung.study


def ladder_folder(plan: LadderPlan, out: Path) -> Path:
    return out / "ladders" / plan.ladder.id


def planned_ladder(plan: LadderPlan) -> PlannedLadder:
    """Converts a plan to its recorded form."""
    ladder, first = plan.ladder, plan.rungs[0].plan
    planted = tuple(arm.name for arm in first.of_role("arm") if _is_planted(arm.name, plan))
    made = PlannedLadder(
        ladder.id, ladder.title, plan.file, first.base.name, plan.rates, ladder.verdict.alpha, ladder.verdict.delta,
        planted, tuple(map(_rung, plan.rungs)), plan.command,
    )  # fmt: skip
    facts = {name: value for name, value in asdict(made).items() if name not in ("title", "file", "command", "hash")}
    return replace(made, hash=hashlib.sha256(json.dumps(facts).encode()).hexdigest())


def _is_planted(name: str, plan: LadderPlan) -> bool:
    """Whether an arm is the baseline itself, with noise of its own, at other budgets."""
    found = [(rung, arm) for rung in plan.rungs for arm in rung.plan.arms if arm.name == name]
    same = all(_is_base_but_for_budget(arm.manifest, rung.plan.base.manifest) for rung, arm in found)
    return same and any(arm.tokens != rung.tokens for rung, arm in found)


def _is_base_but_for_budget(manifest: Manifest, base: Manifest) -> bool:
    told = {name: getattr(base, name) for name in _NAMES} | {"seed": base.seed}
    train = manifest.train.model_copy(update={"budget": base.train.budget})
    return manifest.model_copy(update={**told, "train": train}) == base


def _rung(rung: Rung) -> PlannedRung:
    manifest, spec = rung.plan.base.manifest, rung.spec
    return PlannedRung(
        rung.number, rung.plan.name, planned(rung.plan).hash, rung.parameters, spec.n_layer, spec.n_embd, spec.n_head,
        spec.block_size, manifest.train.batch, rung.tokens, rung.flops, manifest.schedule.lr,
    )  # fmt: skip


def settle_ladder(plan: LadderPlan, out: Path) -> Ladder:
    """Records the plan, unless it is on record. Raises ManifestError if another one is."""
    folder, made = ladder_folder(plan, out), planned_ladder(plan)
    if (folder / _FILE).exists():
        known = read_ladder_record(folder)
        if known.plan.hash != made.hash:
            told = ", ".join(_unlike(known.plan, made)) or "other arms or settings"
            advice = "--fresh moves the ladder and its studies aside, another id begins another ladder"
            raise ManifestError([Fault(plan.file, "", f"{folder} has another plan on record: {told}; {advice}")])
        return known
    append(folder, "Planned", asdict(made))
    return Ladder(folder, made)


def _unlike(old: PlannedLadder, new: PlannedLadder) -> list[str]:
    rules = ("base", "rates", "alpha", "delta")
    found = [f"another {name}" for name in rules if getattr(old, name) != getattr(new, name)]
    if len(old.rungs) != len(new.rungs):
        return [*found, f"{len(old.rungs)} rungs instead of {len(new.rungs)}"]
    rungs = [(a, b) for a, b in zip(old.rungs, new.rungs, strict=True) if a != b]
    return found + [f"rung {a.number} {_changed(a, b)}" for a, b in rungs]


def _changed(old: PlannedRung, new: PlannedRung) -> str:
    one, other = asdict(old), asdict(new)
    unlike = [name for name in one if one[name] != other[name] and name != "hash"]
    return f"differs in {', '.join(unlike)}" if unlike else "has other arms, seeds or rules"


def read_ladder_record(folder: Path) -> Ladder:
    """Reads the record in `folder`. Raises MissingError if there is none, DataError if ratrain did not write it."""
    try:
        event: dict[str, Any] = json.loads((folder / _FILE).read_text().splitlines()[0])
        rungs = tuple(PlannedRung(**facts) for facts in event.pop("rungs"))
        facts = {name: event[name] for name in PlannedLadder.__dataclass_fields__ if name not in ("rungs", "planted")}
        return Ladder(folder, PlannedLadder(**facts, rungs=rungs, planted=tuple(event["planted"])))
    except OSError as error:
        raise MissingError(f"{folder / _FILE}: cannot be read: {error.strerror}; the ladder has not begun") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(f"{folder / _FILE}: holds no plan of a ladder: {error!r}") from error
