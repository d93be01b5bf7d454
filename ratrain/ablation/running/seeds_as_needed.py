"""Seeds as needed: after each block of seeds a study looks, stops the arms that are decided, gives up those that its
budget cannot decide, and spends what is left on the others.

Alpha is spent in proportion to the budget (calendar time; Lan & DeMets 1989) or, without one, to the seeds. The budget
of the plan spends four fifths of it, and each extension half of the rest, so that a study may go on as often as its
owner likes and its claims hold. The losses decide which arms go on, never how much alpha a look spends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ratrain.ablation.budget import StudyBudget
from ratrain.ablation.conclusion import judged, standing_of
from ratrain.ablation.looks import Block, Look
from ratrain.ablation.record import PlannedArm, Study
from ratrain.ablation.results import Row
from ratrain.statistics.forecast import chance_of_verdict
from ratrain.statistics.verdict import Verdict

_RESERVE = 0.2  # of alpha, for extensions of the budget
_KEPT = 0.5  # of the reserve, after each extension
_HOPELESS = 0.05  # chance of a verdict below which an arm is given up
_IDLE = 0.1  # share of a block's time that devices may wait for its last runs
MOST = 4  # seeds of one block, after the first
DECIDED = "every arm has its verdict"


def next_block(study: Study, rows: Sequence[Row], lanes: int, purse: Purse) -> Block | None:
    """Returns the runs up to the next look; None if the study is over.

    A block has so many seeds that `lanes` concurrent runs hardly wait for each other, if the purse pays for them.
    """
    if not study.looks:
        return Block(study.plan.first_look, tuple(row.arm.name for row in rows if row.arm.role in ("arm", "control")))
    last, extended = study.looks[-1], study.budgets[-1][1] == len(study.looks)
    if (last.over not in ("", DECIDED) and not extended) or last.seeds >= len(study.plan.seeds):
        return None  # decided: unless the code of today takes a verdict back
    verdicts = judged(study, rows).verdicts
    still = _with_controls([v.arm for v in verdicts if not v.stops and v.arm not in study.dropped], study)
    if not still:
        return None
    arms = [arm for arm in study.plan.arms if arm.name == study.plan.base.name or arm.name in still]
    reach = _reach(last.seeds, len(study.plan.seeds), purse, arms)
    more = max(1, min(block_size(len(still) + 1, lanes), reach - last.seeds))
    return Block(min(last.seeds + more, len(study.plan.seeds)), tuple(still))


def _with_controls(names: Sequence[str], study: Study) -> list[str]:
    """Returns those of `names` that are arms, in the order of the plan, and the controls of these."""
    tried = {arm.name for arm in study.plan.of_role("arm")}
    serving = {arm.control for arm in study.plan.arms if arm.name in names and arm.name in tried}
    return [arm.name for arm in study.plan.arms if (arm.name in names and arm.name in tried) or arm.name in serving]


def block_size(runs: int, lanes: int) -> int:
    """Returns the least number of seeds whose runs leave no device idle for more than a tenth of the time."""
    idle = {seeds: -(-seeds * runs // lanes) * lanes / (seeds * runs) - 1 for seeds in range(1, MOST + 1)}
    return next((seeds for seeds, share in idle.items() if share <= _IDLE), min(idle, key=idle.__getitem__))


@dataclass
class Purse:
    """What the study has spent of its budget, and what its next runs will cost.

    A run is weighed by its training FLOPs. Runs that were done before the study was begun cost nothing but tokens.
    `ruler` are the arms that run after the last look; their price is kept back from the beginning.
    """

    budget: StudyBudget | None
    spent: float  # up to the last look
    lanes: int = 1  # concurrent runs
    ruler: Sequence[PlannedArm] = ()
    _since: float = field(default_factory=time.monotonic)
    _device: float = 0.0  # seconds since the last look
    _lost: float = 0.0  # seconds of the block before the study was resumed
    _paid: float = 0.0  # of runs, since the study was begun or resumed
    _weight: float = 0.0  # of these runs

    def ran(self, arm: PlannedArm, seconds: float, *, earlier: bool = False) -> None:
        """Counts a run that ended; `earlier`: in the block under way, before the study was resumed."""
        self._device += seconds
        self._weight += _weight(arm)
        self._lost += seconds / self.lanes if earlier else 0.0

    def pay(self, runs: Mapping[str, PlannedArm]) -> None:
        """Adds the cost of a block to what is spent; `runs` are its arms by the folder of the run."""
        now = time.monotonic()
        resource = self.budget.resource if self.budget else "time"
        tokens = float(sum(arm.tokens or 0 for arm in runs.values()))
        cost = {"time": now - self._since + self._lost, "device time": self._device, "tokens": tokens}[resource]
        self.spent += cost
        self._paid += cost
        self._since, self._device, self._lost = now, 0.0, 0.0

    @property
    def left(self) -> float:
        """What the budget has left for seeds; infinite without a budget."""
        kept = sum(len(arm.folders) * self.price([arm]) for arm in self.ruler)
        return self.budget.amount - self.spent - kept if self.budget else math.inf

    def price(self, arms: Iterable[PlannedArm]) -> float:
        """Returns the expected cost of a run of each arm, by that of the runs so far; 0 before the first."""
        each = {arm.folders[0] if arm.folders else arm.name: arm for arm in arms}.values()  # twins share their runs
        if self.budget and self.budget.resource == "tokens":
            return float(sum(arm.tokens or 0 for arm in each))
        return self._paid / self._weight * sum(map(_weight, each)) if self._weight else 0.0


def _weight(arm: PlannedArm) -> float:
    return float(arm.train_flops_per_token * (arm.tokens or 1))


def look(study: Study, rows: Sequence[Row], block: Block, purse: Purse) -> Look:
    """Decides after a block how the study goes on."""
    arms, most = {arm.name: arm for arm in study.plan.arms}, len(study.plan.seeds)
    ahead = purse.price([study.plan.base, *(arms[name] for name in block.arms)])
    spent_up = ahead > purse.left
    first = Look(block.seeds, block.arms, _share(study, block.seeds, purse, over=spent_up), purse.spent, most)
    found = {v.arm: v for v in judged(replace(study, looks=(*study.looks, first)), rows).verdicts}
    first = replace(first, words={v.arm: v.word for v in found.values() if v.stops and v.seeds == block.seeds})
    still = [name for name in block.arms if arms[name].role == "arm" and not found[name].stops]
    if spent_up or block.seeds >= most:
        end = "the budget is spent" if spent_up else "no seeds are left"
        return replace(first, reach=block.seeds, over=end if still or study.dropped else DECIDED)
    dropped: list[str] = []
    while still:
        running = [study.plan.base, *(arms[name] for name in _with_controls(still, study))]
        reach = _reach(block.seeds, most, purse, running)
        chances = {name: _chance(found[name], reach, study) for name in still}
        if chances[worst := min(chances, key=chances.__getitem__)] >= _HOPELESS:
            return replace(first, reach=reach, dropped=tuple(dropped))
        dropped.append(worst)
        still.remove(worst)
    end = "more seeds can decide no other arm" if dropped or study.dropped else DECIDED
    return replace(first, reach=block.seeds, dropped=tuple(dropped), over=end)


def _share(study: Study, seeds: int, purse: Purse, *, over: bool) -> float:
    """Returns the share of alpha's spending time at a look after so many seeds."""
    of_seeds = seeds / len(study.plan.seeds)
    if purse.budget is None:
        return of_seeds
    before = study.budgets[-1][1]  # looks under earlier budgets
    begun, paid = (study.looks[before - 1].share, study.looks[before - 1].spent) if before else (0.0, 0.0)
    end = 1 - _RESERVE * _KEPT ** (len(study.budgets) - 1)
    part = 1.0 if over else min(1.0, (purse.spent - paid) / max(purse.budget.amount - paid, 1e-9))
    known = study.looks[-1].share if study.looks else 0.0
    return max(known, of_seeds, begun + (end - begun) * part)


def _reach(seeds: int, most: int, purse: Purse, arms: Sequence[PlannedArm]) -> int:
    """Returns the number of seeds that these arms can have within the budget."""
    price = purse.price(arms)
    if purse.budget is None or not price:
        return most
    return min(most, seeds + max(0, int(purse.left / price)))


def _chance(verdict: Verdict, reach: int, study: Study) -> float:
    """Returns the chance that an arm has a verdict after `reach` seeds; 0 without a pair of finished runs."""
    arm, rule = standing_of(verdict), study.plan.verdict
    level = rule["alpha"] / len(study.plan.of_role("arm", "control"))
    return 0.0 if arm is None else chance_of_verdict(arm, reach, level, rule["delta"])
