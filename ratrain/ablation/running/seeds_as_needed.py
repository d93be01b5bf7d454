"""Seeds as needed: after each block of seeds a study looks, stops the arms that are decided, gives up those that its
budget cannot decide, and spends what is left on the others.

Alpha is spent in proportion to the budget (calendar time; Lan & DeMets 1989) or, without one, to the seeds. The budget
of the plan spends four fifths of it, and each extension half of the rest, so that a study may go on as often as its
owner likes and its claims hold. The losses decide which arms go on, never how much alpha a look spends.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ratrain.ablation.budget import StudyBudget
from ratrain.ablation.conclusion import judged, standing_of
from ratrain.ablation.record import Block, Look, PlannedArm, Study
from ratrain.ablation.results import Row
from ratrain.statistics.forecast import chance_of_verdict
from ratrain.statistics.verdict import Verdict

_RESERVE = 0.2  # of alpha, for extensions of the budget
_EXTENSION = 0.5  # part of the reserve that one extension spends
_HOPELESS = 0.05  # chance of a verdict below which an arm is given up
_IDLE = 0.1  # share of a block's time that devices may wait for its last runs
_MOST = 4  # seeds of one block
DECIDED = "every arm has its verdict"


def next_block(study: Study, rows: Sequence[Row], lanes: int) -> Block | None:
    """Returns the runs up to the next look; None if the study is over.

    A block has so many seeds that `lanes` concurrent runs hardly wait for each other.
    """
    arms = [row.arm.name for row in rows if row.arm.role in ("arm", "control")]
    if not study.looks:
        return Block(study.plan.first_look, tuple(arms))
    last, extended = study.looks[-1], study.budgets[-1][1] == len(study.looks)
    if last.over and not extended:
        return None
    verdicts = {verdict.arm: verdict for verdict in judged(study, rows).verdicts}
    still = _without_idle_controls([arm for arm in arms if not verdicts[arm].stops and arm not in study.dropped], study)
    if not still or last.seeds >= len(study.plan.seeds):
        return None
    more = _block_size(len(still) + 1, lanes)
    return Block(min(last.seeds + more, len(study.plan.seeds)), tuple(still))


def _without_idle_controls(names: Sequence[str], study: Study) -> list[str]:
    """Leaves out the controls of arms that no longer run."""
    arms = {arm.name: arm for arm in study.plan.arms}
    serving = {arms[name].control for name in names}
    return [name for name in names if arms[name].role == "arm" or name in serving]


def _block_size(runs: int, lanes: int) -> int:
    """Returns the least number of seeds whose runs leave no device idle for more than a tenth of the time."""
    idle = {seeds: -(-seeds * runs // lanes) * lanes / (seeds * runs) - 1 for seeds in range(1, _MOST + 1)}
    return next((seeds for seeds, share in idle.items() if share <= _IDLE), min(idle, key=idle.__getitem__))


@dataclass
class Purse:
    """What the study has spent of its budget, and what its next runs will cost.

    A run is weighed by its training FLOPs. Runs that were done already cost neither time nor device time.
    """

    budget: StudyBudget | None
    spent: float  # up to the last look
    _since: float = field(default_factory=time.monotonic)
    _device: float = 0.0  # seconds since the last look
    _paid: float = 0.0  # since the study was begun or resumed
    _weight: float = 0.0  # of the runs that were trained since then

    def ran(self, arm: PlannedArm, seconds: float) -> None:
        """Counts a run that ended."""
        self._device += seconds
        self._weight += _weight(arm)

    def pay(self, arms: Iterable[PlannedArm]) -> None:
        """Adds the cost of a block, one entry per run, to what is spent."""
        now = time.monotonic()
        resource = self.budget.resource if self.budget else "time"
        tokens = float(sum(arm.tokens or 0 for arm in arms))
        cost = {"time": now - self._since, "device time": self._device, "tokens": tokens}[resource]
        self.spent += cost
        self._paid, self._since, self._device = self._paid + cost, now, 0.0

    def price(self, arms: Iterable[PlannedArm]) -> float:
        """Returns the expected cost of runs, by that of the runs so far; 0 before the first."""
        if self.budget and self.budget.resource == "tokens":
            return float(sum(arm.tokens or 0 for arm in arms))
        return self._paid / self._weight * sum(map(_weight, arms)) if self._weight else 0.0


def _weight(arm: PlannedArm) -> float:
    return float(arm.train_flops_per_token * (arm.tokens or 1))


def look(study: Study, rows: Sequence[Row], block: Block, purse: Purse) -> Look:
    """Decides after a block how the study goes on."""
    arms = {row.arm.name: row.arm for row in rows}
    most = len(study.plan.seeds)
    ahead = purse.price([study.plan.base, *(arms[name] for name in block.arms)])
    spent_up = purse.budget is not None and purse.spent + ahead > purse.budget.amount
    share = _share(study, block.seeds, purse, over=spent_up)
    first = Look(block.seeds, block.arms, share, purse.spent, most)
    judgement = judged(replace(study, looks=(*study.looks, first)), rows)
    verdicts = {verdict.arm: verdict for verdict in judgement.verdicts}
    still = _without_idle_controls([name for name in block.arms if not verdicts[name].stops], study)
    if spent_up or block.seeds >= most:
        end = "the budget is spent" if spent_up else "no seeds are left"
        return replace(first, reach=block.seeds, over=end if still or study.dropped else DECIDED)
    level = study.plan.verdict["alpha"] / len(judgement.verdicts)
    dropped: list[str] = []
    while still:
        reach = _reach(block.seeds, most, purse, [study.plan.base, *(arms[name] for name in still)])
        chances = {name: _chance(verdicts[name], reach, level, study) for name in still if arms[name].role == "arm"}
        if chances[worst := min(chances, key=chances.__getitem__)] >= _HOPELESS:
            return replace(first, reach=reach, dropped=tuple(dropped))
        dropped.append(worst)
        still = _without_idle_controls([name for name in still if name != worst], study)
    end = "more seeds can decide no other arm" if dropped or study.dropped else DECIDED
    return replace(first, reach=block.seeds, dropped=tuple(dropped), over=end)


def _share(study: Study, seeds: int, purse: Purse, *, over: bool) -> float:
    """Returns the share of alpha's spending time at a look after so many seeds."""
    of_seeds = seeds / len(study.plan.seeds)
    if purse.budget is None:
        return of_seeds
    before = study.budgets[-1][1]  # looks under earlier budgets
    begun, paid = (study.looks[before - 1].share, study.looks[before - 1].spent) if before else (0.0, 0.0)
    end = begun + (1 - begun) * _EXTENSION if before else 1 - _RESERVE
    part = 1.0 if over else min(1.0, (purse.spent - paid) / max(purse.budget.amount - paid, 1e-9))
    known = study.looks[-1].share if study.looks else 0.0
    return max(known, of_seeds, begun + (end - begun) * part)


def _reach(seeds: int, most: int, purse: Purse, arms: Sequence[PlannedArm]) -> int:
    """Returns the number of seeds that these arms can have within the budget."""
    price = purse.price(arms)
    if purse.budget is None or not price:
        return most
    return min(most, seeds + int((purse.budget.amount - purse.spent) / price))


def _chance(verdict: Verdict, reach: int, level: float, study: Study) -> float:
    arm = standing_of(verdict)
    return 1.0 if arm is None else chance_of_verdict(arm, reach, level, study.plan.verdict["delta"])
