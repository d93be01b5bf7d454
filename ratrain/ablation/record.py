"""The record of a study: its plan, fixed before the first step; later amendments; step costs; tuned arms.

`events.jsonl` in the study's folder holds the whole record, one JSON object a line. A report needs only this file and
the `events.jsonl` of the runs.
"""

from __future__ import annotations

import calendar
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ratrain.ablation.arms import Arm, Role
from ratrain.ablation.looks import Block, Look, following
from ratrain.ablation.manifest import Tune
from ratrain.ablation.plan import Plan
from ratrain.atomic import write_file
from ratrain.errors import DataError, Fault, ManifestError, MissingError

_FILE = "events.jsonl"
# of the errors of effects: variances by arm, moderated, and that of documents beside them. Earlier ones were "pooled",
# one variance for all arms, before the name was recorded, and "moderated", with one t for seeds and documents together
METHOD = "moderated, documents apart"
_TIME = "%Y-%m-%dT%H:%M:%SZ"  # UTC
_RULES = ("base", "verdict", "metric", "match", "scale", "tune", "first_look")  # never amended: they define a verdict


@dataclass(frozen=True)
class PlannedArm:
    """One arm: its recipe, size and cost, and the folders of its runs, one per pair of seeds, below the folder of
    runs."""

    name: str
    role: Role
    of: str
    control: str
    point: dict[str, Any]
    recipe: str
    id: str
    same_as: str | None
    twin: str  # A/A kind, or none
    parameters: int
    train_flops_per_token: int
    kv_bytes_per_token: int
    tokens: int | None
    seeds: tuple[tuple[int, int], ...]
    folders: tuple[str, ...]


@dataclass(frozen=True)
class Planned:
    """A plan in its recorded form. `hash` digests the arms (name, role, recipe, seeds), verdict, metric, match, tune,
    `first_look` and the guards."""

    id: str
    title: str
    file: str
    scale: str
    match: str
    metric: dict[str, Any]
    verdict: dict[str, Any]
    tune: dict[str, Any] | None
    seeds: tuple[tuple[int, int], ...]
    arms: tuple[PlannedArm, ...]
    hash: str = ""
    first_look: int = 0  # seeds as needed: those before it; 0: the seeds are fixed
    budget: str = ""  # seeds as needed; empty: up to the last seed. Not part of the hash, since it may be extended
    search: str = ""  # of a trial: the study that its search began with
    before: int = 0  # of a trial: the number of ideas that the search tried earlier
    command: str = ""  # of a trial
    guard: tuple[str, ...] = ()  # downstream tasks beside the metric, as the manifest names them

    @property
    def base(self) -> PlannedArm:
        return self.arms[0]

    def of_role(self, *roles: Role) -> list[PlannedArm]:
        return [arm for arm in self.arms if arm.role in roles]


@dataclass(frozen=True)
class Cost:
    """The cost of a train step of an arm in isolation: seconds, and its ratio to the baseline's with the 95 %
    interval."""

    seconds: float
    ratio: float
    interval: tuple[float, float]
    rounds: int


@dataclass(frozen=True)
class GuardedTask:
    """A task that guards the study, as it was when the study resolved it: the word that names it, and its digest."""

    word: str
    task: str
    metric: str
    digest: str


@dataclass(frozen=True)
class Study:
    """The current record of a study. `plan` is the first plan on record, `now` the plan with all amendments."""

    folder: Path
    plan: Planned
    now: Planned
    checked: tuple[str, ...] = ()  # preflight checks that passed, in words
    costs: dict[str, Cost] = field(default_factory=dict)  # of a step, by arm
    machine: str = ""  # the machine of the cost measurements
    tuned: tuple[PlannedArm, ...] = ()
    method: str = METHOD  # of the errors of effects, when the plan was recorded
    looks: tuple[Look, ...] = ()  # with seeds as needed
    budgets: tuple[tuple[str, int], ...] = ()  # the plan's and each extension, with the number of looks before it
    guarded: tuple[GuardedTask, ...] = ()  # as resolved last
    reguarded: tuple[str, ...] = ()  # tasks whose definition or documents changed since the study began
    since: float = 0.0  # Unix time of the last look, before the first of the plan

    @property
    def out(self) -> Path:
        """The folder of runs."""
        return self.folder.parents[1]

    @property
    def reach(self) -> int:
        """The number of seeds that an arm can have: the planned ones, or those that the budget pays for."""
        return self.looks[-1].reach if self.looks else len(self.plan.seeds)

    def seeds_of(self, arm: str, block: Block | None = None) -> int:
        """Returns the number of seeds that the study has asked for in an arm, after its looks and the next `block`; all
        if its seeds are fixed."""
        planned = next(len(known.seeds) for known in (*self.now.arms, *self.tuned) if known.name == arm)
        if not self.plan.first_look:
            return planned
        always = self.now.of_role("base", "ruler")
        steps = [*self.looks, *([block] if block else [])] or [Block(self.plan.first_look, (arm,))]
        asked = [step.seeds for step in steps if arm in step.arms or any(arm == other.name for other in always)]
        return min(planned, max(asked, default=0))

    @property
    def dropped(self) -> set[str]:
        """The arms that were given up since the budget was last extended."""
        return {arm for look in self.looks[self.budgets[-1][1] :] for arm in look.dropped} if self.budgets else set()

    def is_later(self, arm: str) -> bool:
        """Whether the arm was added to the plan after the study had begun."""
        return arm not in {planned.name for planned in self.plan.arms}


def planned(plan: Plan) -> Planned:
    """Converts a plan to its recorded form."""
    study = plan.study
    made = Planned(
        study.id, study.title, plan.file, plan.base.manifest.scale, study.match, study.metric.model_dump(),
        study.rule.model_dump(exclude={"noise"}), _tune(study.tune) if study.tune else None,
        plan.seeds, tuple(planned_arm(arm) for arm in plan.arms),
        first_look=study.seed.min if study.seed.as_needed else 0, budget=study.budget or "", search=plan.search,
        before=plan.before, command=plan.command, guard=study.guard,
    )  # fmt: skip
    facts = [[(a.name, a.role, a.recipe, a.seeds) for a in made.arms], made.verdict, made.metric, made.match, made.tune]
    facts += [made.first_look] if made.first_look else []
    facts += [{"guard": made.guard}] if made.guard else []  # without guards, the hash of earlier versions
    return replace(made, hash=hashlib.sha256(json.dumps(facts).encode()).hexdigest())


def _tune(tune: Tune) -> dict[str, Any]:
    """Returns the tuning as it was recorded before seeds as needed."""
    return tune.model_dump(mode="json", exclude={"seed": {"min", "max"}})


def planned_arm(arm: Arm) -> PlannedArm:
    built, manifest = arm.built, arm.manifest
    folders = tuple(arm.folder(*pair) for pair in arm.seeds)
    return PlannedArm(
        arm.name, arm.role, arm.of, arm.control, arm.point, arm.recipe, manifest.id, manifest.same_as,
        manifest.seed.twin, built.parameters, built.train_flops_per_token, built.kv_bytes_per_token, arm.tokens,
        arm.seeds, folders,
    )  # fmt: skip


def refuse_other(plan: Planned, folder: Path, *, amend: bool) -> None:
    """Raises ManifestError if `folder` records another plan, unless `amend` is set and the new plan only adds arms or
    seeds."""
    if not (folder / _FILE).exists():
        return
    study = read_study(folder)
    if plan.hash == study.now.hash:
        return
    lost, unlike = _lost(study.now, plan), _unlike(study.now, plan)
    if unlike or lost or not amend or study.now.first_look:  # with seeds as needed the arms share one budget
        what = ", ".join([*unlike, *lost, *_added(study.now, plan)]) or "other settings of the study"
        advice = "--fresh moves the study and its runs aside, another id begins another study"
        if not unlike and not lost and not study.now.first_look:
            advice = f"--amend adds it, labelled exploratory; {advice}"
        raise ManifestError([Fault(plan.file, "", f"{folder} has another plan on record: {what}; {advice}")])


def settle(plan: Planned, folder: Path, *, checked: Sequence[str]) -> Study:
    """Records the plan together with the passed checks; verdicts rest on the first recorded plan."""
    facts = {name: value for name, value in asdict(plan).items() if name != "guard" or value}
    event = "Amended" if (folder / _FILE).exists() else "Planned"
    append(folder, event, {**facts, "checked": list(checked), "method": METHOD})
    return read_study(folder)


def _added(old: Planned, new: Planned) -> list[str]:
    names = {arm.name for arm in old.arms}
    arms = [arm.name for arm in new.arms if arm.name not in names]
    seeds = [str(init) for init, data in new.seeds if (init, data) not in old.seeds]
    kinds = ("arms", arms), ("seeds", seeds), ("guards", [word for word in new.guard if word not in old.guard])
    return [f"new {what} {', '.join(those)}" for what, those in kinds if those]


def _lost(old: Planned, new: Planned) -> list[str]:
    recipes = {arm.name: arm.recipe for arm in new.arms}
    arms = [arm.name for arm in old.arms if arm.name not in recipes]
    other = [arm.name for arm in old.arms if recipes.get(arm.name, arm.recipe) != arm.recipe]
    seeds = [str(init) for at, (init, data) in enumerate(old.seeds) if new.seeds[at : at + 1] != ((init, data),)]
    guards = [word for word in old.guard if word not in new.guard]
    kinds = (
        ("no longer arms", arms), ("other recipes of", other), ("no longer the first seeds", seeds),
        ("no longer guards", guards),
    )  # fmt: skip
    return [f"{what} {', '.join(those)}" for what, those in kinds if those]


def _unlike(old: Planned, new: Planned) -> list[str]:
    def facts(plan: Planned, rule: str) -> Any:
        return plan.base.name if rule == "base" else json.loads(json.dumps(getattr(plan, rule)))

    unlike = {rule: (facts(old, rule), facts(new, rule)) for rule in _RULES}
    return [f"another {rule}{_changed_keys(*both)}" for rule, both in unlike.items() if both[0] != both[1]]


def _changed_keys(old: Any, new: Any) -> str:
    """Names the keys of a table that differ; empty for other values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return ""
    return f" ({', '.join(key for key in {**old, **new} if old.get(key) != new.get(key))})"


def record_costs(study: Study, costs: dict[str, Cost], machine: str) -> Study:
    append(study.folder, "Costs", {"machine": machine, "costs": {name: asdict(cost) for name, cost in costs.items()}})
    return read_study(study.folder)


def record_look(study: Study, look: Look) -> Study:
    append(study.folder, "Looked", asdict(look))
    return read_study(study.folder)


def record_budget(study: Study, budget: str) -> Study:
    """Records that the budget was extended."""
    append(study.folder, "Extended", {"budget": budget})
    return read_study(study.folder)


def record_guards(study: Study, tasks: Sequence[GuardedTask]) -> Study:
    """Records the resolved tasks that guard the study, unless the record holds them already."""
    if tuple(tasks) != study.guarded:
        append(study.folder, "Guarded", {"tasks": [asdict(task) for task in tasks]})
    return read_study(study.folder)


def record_tuned(study: Study, arms: Sequence[Arm]) -> Study:
    """Records the arms at their own best points, unless the record holds them already."""
    made = tuple(planned_arm(arm) for arm in arms)
    if made != study.tuned:
        append(study.folder, "Tuned", {"arms": [asdict(arm) for arm in made]})
    return read_study(study.folder)


def append(folder: Path, event: str, facts: dict[str, Any]) -> None:
    """Appends one line to the record atomically: whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    line = {"schema": 1, "event": event, "time": time.strftime(_TIME, time.gmtime()), **facts}
    file = folder / _FILE
    before = file.read_bytes() if file.exists() else b""
    write_file(file, [before, (json.dumps(line) + "\n").encode()])


def read_study(folder: Path) -> Study:
    """Reads the record in `folder`. Raises MissingError if the file cannot be read, DataError if it holds no plan or
    lines that ratrain did not write."""
    try:
        lines = (folder / _FILE).read_text().splitlines()
    except OSError as error:
        raise MissingError(f"{folder / _FILE}: cannot be read: {error.strerror}; the study has not begun") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{folder / _FILE}: holds a line that ratrain did not write: {error}") from error
    plan, now, rest = None, None, {}
    try:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            kind = event["event"]
            if kind in ("Planned", "Amended"):
                now = _planned(event)
                rest["method"] = rest.get("method", event.get("method", "pooled"))
                plan, rest["checked"] = plan or now, tuple(event.get("checked", ()))
                rest.setdefault("since", _unix(event["time"]))
                rest.setdefault("budgets", ((now.budget, 0),))
            elif kind == "Looked":
                rest["since"] = _unix(event["time"])
                rest["looks"] = following(rest.get("looks", ()), Look.of(event))
            elif kind == "Extended":
                rest["budgets"] = (*rest["budgets"], (event["budget"], len(rest.get("looks", ()))))
            elif kind == "Costs":
                rest["machine"] = event["machine"]
                rest["costs"] = rest.get("costs", {}) | {name: _cost(of) for name, of in event["costs"].items()}
            elif kind == "Guarded":
                rest |= _guarded(rest, tuple(GuardedTask(**facts) for facts in event["tasks"]))
            elif kind == "Tuned":
                rest["tuned"] = tuple(map(_arm, event["arms"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{folder / _FILE}: holds a line that ratrain did not write: {error!r}") from error
    if plan is None or now is None:
        raise DataError(f"{folder / _FILE}: holds no plan")
    return Study(folder, plan, now, **rest)


def _guarded(rest: dict[str, Any], tasks: tuple[GuardedTask, ...]) -> dict[str, Any]:
    """Returns the guards as resolved last, and the names of those that have changed."""
    known = {task.task: task.digest for task in rest.get("guarded", ())}
    changed = [task.task for task in tasks if known.get(task.task, task.digest) != task.digest]
    return {"guarded": tasks, "reguarded": tuple(dict.fromkeys([*rest.get("reguarded", ()), *changed]))}


def _unix(text: str) -> float:
    return float(calendar.timegm(time.strptime(text, _TIME)))


def _planned(event: dict[str, Any]) -> Planned:
    new = {
        "first_look": 0,
        "budget": "",
        "search": "",
        "before": 0,
        "command": "",
        "guard": (),
    }  # keys that earlier versions did not record
    facts = {name: event[name] if name not in new else event.get(name, new[name]) for name in _fields(Planned)}
    arms, guard = tuple(map(_arm, facts["arms"])), tuple(facts["guard"])
    return Planned(**{**facts, "seeds": _pairs(facts["seeds"]), "arms": arms, "guard": guard})


def _fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _arm(facts: dict[str, Any]) -> PlannedArm:
    return PlannedArm(**{**facts, "seeds": _pairs(facts["seeds"]), "folders": tuple(facts["folders"])})


def _pairs(seeds: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((init, data) for init, data in seeds)


def _cost(facts: dict[str, Any]) -> Cost:
    return Cost(**{**facts, "interval": tuple(facts["interval"])})
