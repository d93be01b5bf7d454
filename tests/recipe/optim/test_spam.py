"""SPAM and the reference's SPAM, held to their procedures written out step by step in float64."""

from __future__ import annotations

import math
import runpy
import statistics
from pathlib import Path
from types import SimpleNamespace

import pydantic
import pytest
import torch

from ratrain.recipe.optim import adamwspam
from ratrain.recipe.optim.adamwspam import AdamWSPAM, cut

rounding = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "rounding.py")))
BETAS, EPS, DECAY = (0.9, 0.95), 1e-8, 0.125


def schedule(seed):
    return 2.0 ** -(seed % 3 + 4)


def norm_of(gradients):
    return math.sqrt(sum(float(g.square().sum()) for g in gradients))


class Plain:
    """What both do, one tensor after another."""

    def __init__(self, parameters, *, amsgrad):
        self.w = [p.detach().clone() for p in parameters]
        self.m, self.v, self.top = ([torch.zeros_like(w) for w in self.w] for _ in range(3))
        self.k, self.amsgrad, self.norms = 0, amsgrad, []
        self.spikes = self.clipped = self.resets = 0

    def update(self, gradients, lr):
        self.k += 1
        b1, b2 = BETAS
        for i, g in enumerate(gradients):
            self.w[i] *= 1 - lr * (DECAY if i < 3 else 0)
            self.m[i] = b1 * self.m[i] + (1 - b1) * g
            self.v[i] = b2 * self.v[i] + (1 - b2) * g**2
            self.top[i] = self.top[i].maximum(self.v[i])
            root = (self.top if self.amsgrad else self.v)[i].sqrt() / math.sqrt(1 - b2**self.k)
            self.w[i] -= lr / (1 - b1**self.k) * self.m[i] / (root + EPS)

    def judge(self, gradients, z, window):
        norm = norm_of(gradients)
        self.norms = [*self.norms, norm][-window:]
        if z and len(self.norms) >= 10:
            mean, deviation = statistics.fmean(self.norms[:-1]), statistics.pstdev(self.norms[:-1])
            if (norm - mean) / deviation > z:
                self.spikes += 1
                self.m, self.v = [0.5 * m for m in self.m], [0.9 * v for v in self.v]
        return norm

    def cut(self, gradients, theta, correction=1.0, floor=0.0):
        limits = [(theta * (v + floor) / correction).sqrt() for v in self.v]
        limits = [torch.where(limit > 0, limit, math.inf) for limit in limits]
        self.clipped += sum(int((g.abs() > x).sum()) for g, x in zip(gradients, limits, strict=True))
        return [g.clamp(-x, x) for g, x in zip(gradients, limits, strict=True)]

    def counts(self):
        return {"spikes": self.spikes, "clipped": self.clipped, "resets": self.resets}


def counts(one):
    return {name: int(one.optimizer.own[name]) for name in one.optimizer.tallies}


def gradients_of(one, seed):
    """Heavy-tailed, and one row of the table is seen at the 20th step for the first time."""
    gradients = [g * g.abs() ** 2 * (1 + seed % 4) for g in one.gradients(seed)]
    if seed < 20:
        gradients[3][0] = 0
    return gradients


def near(one, plain, *, lr, steps=30):
    """To first order: theta / (1 - beta2^k) is found in fp32, from the third step on, and gradients end where it says.

    v holds the squares of gradients that were cut, and sets the next limits: in each step its relative error may grow
    by 1 - beta2 of that of a limit. m and its error are means of |g|, at most 1.17 sqrt(v) by Cauchy's inequality, with
    and without the corrections; and so is a step of the weights, over the learning rate.
    """
    missing = 1 - BETAS[1] ** 2  # beside it the rounding of beta2^k is large
    of_limit = 2**-24 * (2 * BETAS[1] ** 2 / missing + 3)  # squared
    of_v = of_limit * (1 + steps * (1 - BETAS[1]))
    of_g = (of_limit + of_v) / 2
    for parameter, m, v, w, plain_m, plain_v in zip(
        one.parameters, one.state("exp_avg"), one.state("exp_avg_sq"), plain.w, plain.m, plain.v, strict=True
    ):
        rounding.check(v, plain_v, of_v * plain_v + 1e-14, "v")
        rounding.check(m, plain_m, 1.17 * of_g * plain_v.sqrt() + 1e-14, "m")
        rounding.check(parameter, w, 1.17 * (of_g + of_v / 2) * lr + 1e-14, "w")


@pytest.mark.usefixtures("all_in_float64")
@pytest.mark.parametrize("z", [0.0, 1.0])
@pytest.mark.parametrize(("interval", "warmup"), [(7, 4), (0, 4), (13, 13), (6, 0)])
def test_spam_is_its_procedure(trial, z, interval, warmup):
    options = {"theta": 3.0, "interval": interval, "warmup": warmup, "grace": 2, "spike_z": z, "spike_window": 12}
    one = trial("adamwspam", weight_decay=DECAY, **options)
    plain, since = Plain(one.parameters, amsgrad=False), 0
    for step in range(1, 31):
        gradients, scale = gradients_of(one, step), 1 + step % 3
        one.step(gradients, lr=schedule(step), scale=scale, skip=0)
        if interval and step > 1 and (step - 1) % interval == 0:  # between the two steps
            plain.m, plain.v = ([torch.zeros_like(w) for w in plain.w] for _ in range(2))
            plain.k, since, plain.resets = 0, 0, plain.resets + 1
        factor = 1.0
        if plain.resets and since < warmup:
            factor = (1 - math.cos(math.pi * (since + 1) / warmup)) / 2
        seen = [g / scale for g in gradients]
        if since >= 2:
            seen = plain.cut(seen, 3.0, 1 - BETAS[1] ** plain.k)
        plain.judge(gradients, z, 12)
        plain.update(seen, schedule(step) * factor)
        since += 1
    near(one, plain, lr=sum(map(schedule, range(1, 31))))
    assert counts(one) == plain.counts()
    assert plain.clipped > 10
    assert bool(plain.spikes) == bool(z)
    assert plain.resets == (29 // interval if interval else 0)


@pytest.mark.usefixtures("all_in_float64")
@pytest.mark.parametrize("z", [0.0, 1.0])
@pytest.mark.parametrize("cuts", [False, True])
@pytest.mark.parametrize(("interval", "warmup"), [(14, 8), (7, 8), (0, 4), (10, 10), (8, 7), (6, 0)])
def test_the_legacy_is_the_reference_s_procedure(trial, z, cuts, interval, warmup):
    options = {"theta": 3.0, "interval": interval, "warmup": warmup, "spike_z": z, "spike_window": 12}
    one = trial("spam_legacy", weight_decay=DECAY, clip=1.0, clip_spikes=cuts, **options)
    plain, count, until = Plain(one.parameters, amsgrad=True), 0, 0
    for step in range(1, 31):
        gradients = gradients_of(one, step)
        one.step(gradients, lr=schedule(step), scale=max(1.0, norm_of(gradients)), skip=0)
        if cuts and step > 1:
            gradients = plain.cut(gradients, 3.0, floor=1e-12)
        norm = plain.judge(gradients, z, 12)
        count += 2  # once with the norm, once with the reset
        gradients = [g / torch.tensor(max(1.0, norm), dtype=torch.float32).double() for g in gradients]
        if interval and count % interval == 0:
            plain.m, plain.v = ([torch.zeros_like(w) for w in plain.w] for _ in range(2))
            plain.resets += 1
            until = count + warmup
        factor = 1.0
        if until > count:
            x = (warmup - (until - count)) / warmup
            factor = max(1e-3, 0.5 * (1 - math.cos(math.pi * x)))
        plain.update(gradients, schedule(step) * factor)
    torch.testing.assert_close([p.detach() for p in one.parameters], plain.w, rtol=0, atol=1e-12)
    torch.testing.assert_close(one.state("exp_avg_sq"), plain.v, rtol=0, atol=1e-12)
    torch.testing.assert_close(one.state("max_exp_avg_sq"), plain.top, rtol=0, atol=1e-12)
    assert counts(one) == plain.counts()
    assert bool(plain.clipped) == cuts


def resets_of(one, steps):
    """In which steps, counted from 1, there was one more."""
    found, before = [], 0
    for step in range(1, steps + 1):
        one.steps([step])
        now = int(one.optimizer.own["resets"])
        found += [step] * (now - before)
        before = now
    return found


def test_spam_resets_after_every_interval(trial):
    one = trial("adamwspam", interval=100, warmup=0)
    assert [step - 1 for step in resets_of(one, 300)] == [100, 200]  # the next step begins with it
    assert all(t.any() for key in ("exp_avg", "exp_avg_sq", "step") for t in one.state(key))
    one.steps([301])
    assert {float(t) for t in one.state("step")} == {1.0}


@pytest.mark.parametrize(("interval", "expected"), [(100, [49, 99, 149]), (101, [100]), (0, [])])
def test_the_legacy_counts_every_step_twice(trial, interval, expected):
    """D11: T even, every T/2 iterations, counted from 0; T odd, every T."""
    assert [step - 1 for step in resets_of(trial("spam_legacy", interval=interval), 160)] == expected


def rates_of(one, steps):
    """The learning rate that each step was made with, over the scheduled one: a weight is decayed by lr x 1."""
    weights, rates = one.parameters[0], []
    for _ in range(steps):
        with torch.no_grad():
            weights.fill_(1.0)
        one.step([torch.zeros_like(p) for p in one.parameters], lr=0.5)
        rates.append(float(1 - weights.detach()[0, 0]) / 0.5)
    return rates


def test_the_warm_up_lasts_as_many_steps_as_it_says(trial):
    rates = rates_of(trial("adamwspam", interval=30, warmup=20, weight_decay=1.0), 95)
    rising = [(1 - math.cos(math.pi * j / 20)) / 2 for j in range(1, 21)]
    assert rates == pytest.approx([*[1.0] * 30, *[*rising, *[1.0] * 10] * 2, *rising[:5]], abs=1e-6)


def test_the_warm_up_of_the_legacy_lasts_half_as_many(trial):
    rates = rates_of(trial("spam_legacy", interval=60, warmup=20, weight_decay=1.0), 58)
    stated = [0.001, 0.024, 0.095, 0.206, 0.345, 0.5, 0.655, 0.794, 0.905, 0.976]
    assert rates == pytest.approx([*[1.0] * 29, *stated, *[1.0] * 19], abs=6e-4)


def test_the_legacy_with_1000_and_1000_is_always_warming_up(trial):
    rates = rates_of(trial("spam_legacy", interval=1000, warmup=1000, weight_decay=1.0), 1999)
    assert rates[:499] == [1.0] * 499
    assert max(rates[1499:1999]) < 1
    assert sum(rates[1499:1999]) / 500 == pytest.approx(0.5, abs=0.01)


def test_the_first_step_after_a_reset_is_bounded(trial):
    one = trial("adamwspam", interval=10, warmup=8, weight_decay=0.0)
    one.steps(range(10), lr=0.5)
    before = [p.detach().clone() for p in one.parameters]
    one.step([1e6 * g for g in one.gradients(11)], lr=0.5)
    bound = 0.5 * (1 - math.cos(math.pi / 8)) / 2
    for parameter, start in zip(one.parameters, before, strict=True):
        assert (parameter - start).abs().max() <= bound * (1 + 1e-6)


def test_within_the_grace_nothing_is_cut(trial):
    """D12: with few steps behind it, and no bias correction, nearly every coordinate was."""
    one = trial("adamwspam", theta=1.0, grace=5, interval=20, warmup=0)
    seen = []
    for seed in range(45):
        one.steps([seed])
        seen.append(int(one.optimizer.own["clipped"]))
    grew = {i for i in range(1, 45) if seen[i] > seen[i - 1]}
    assert grew == {*range(5, 20), *range(25, 40)}


def test_a_weight_without_a_history_is_not_held_at_zero(trial):
    one = trial("adamwspam", grace=2, weight_decay=0.0)
    for seed in range(10):
        gradients = one.gradients(seed)
        gradients[3][0] = 0  # a token that did not occur
        one.step(gradients)
    before = one.parameters[3].detach().clone()
    one.steps([10])
    assert (one.parameters[3] != before).all()


@pytest.mark.parametrize("kind", ["adamwspam", "spam_legacy"])
def test_a_spike_halves_the_momentum_once_and_training_goes_on(trial, kind):
    one = trial(kind, weight_decay=0.0, spike_z=6.0)
    target, losses, spikes = one.gradients(500), [], []
    for seed in range(400):
        missing = [p.detach() - t for p, t in zip(one.parameters, target, strict=True)]
        noisy = [(100 if seed == 40 else 1) * (d + 0.05 * n) for d, n in zip(missing, one.gradients(seed), strict=True)]
        before, scale = [m.clone() for m in one.state("exp_avg")], max(1.0, norm_of(noisy))
        one.step(noisy, scale=scale, skip=0, lr=1e-2)
        losses.append(norm_of(missing))
        spikes.append(counts(one)["spikes"])
        if seed == 40:
            expected = [0.9 * 0.5 * m + 0.1 * g / scale for m, g in zip(before, noisy, strict=True)]
            torch.testing.assert_close(one.state("exp_avg"), expected)
    assert spikes == [0] * 40 + [1] * 360
    assert all(losses[i + 20] < losses[i] for i in range(0, 300, 20))
    assert losses[-1] < 0.05 * losses[0]


def test_ten_norms_are_needed_before_one_is_a_spike(trial):
    for enough, expected in ((9, 1), (8, 0)):
        one = trial("adamwspam", spike_z=3.0)
        one.steps(range(enough))
        one.step([100 * g for g in one.gradients(enough)])
        assert counts(one)["spikes"] == expected


def test_norms_that_never_differ_are_no_spikes(trial):
    one = trial("adamwspam", spike_z=0.1)
    one.steps([3] * 20)
    assert counts(one)["spikes"] == 0


def test_a_skipped_step_is_not_in_the_history_and_counts_nothing(trial):
    one = trial("adamwspam", spike_z=3.0, interval=20, warmup=0, grace=0, theta=1.0)
    one.steps(range(19), scale=1, skip=0)
    before = {name: tensor.clone() for name, tensor in one.optimizer.own.items()}
    one.step([torch.full_like(g, math.inf) for g in one.gradients(0)], scale=math.inf, skip=1)
    assert int(one.optimizer.own["calls"]) == 20
    assert all(torch.equal(one.optimizer.own[name], tensor) for name, tensor in before.items() if name != "calls")


def test_cutting_counts_what_was_outside_and_keeps_what_was_not():
    g = torch.tensor([0.5, -0.5, 2.0, -3.0, 0.0, 1.0])
    limits = torch.tensor([1.0, 1.0, 1.0, 2.0, 0.0, math.inf])
    assert cut([g], [limits]) == 2
    assert g.tolist() == [0.5, -0.5, 1.0, -2.0, 0.0, 1.0]


def test_a_warm_up_that_never_ends_is_refused():
    with pytest.raises(pydantic.ValidationError, match="expected at most interval = 100"):
        AdamWSPAM(interval=100, warmup=101)
    assert AdamWSPAM(interval=0, warmup=101).interval == 0


def test_to_look_first_who_exceeds_changes_nothing(trial, monkeypatch):
    """On a CPU only gradients with a coordinate beyond its limit are cut; elsewhere all are."""
    options = {"theta": 12.0, "grace": 2, "interval": 20, "warmup": 0}
    looking, cutting = (trial("adamwspam", dtype=torch.float32, **options) for _ in range(2))
    looking.steps(range(30), scale=1.5, skip=0)
    monkeypatch.setattr(adamwspam, "_exceeding", lambda gradients, squares: list(zip(gradients, squares, strict=True)))
    cutting.steps(range(30), scale=1.5, skip=0)
    assert all(torch.equal(looking.bits()[name], cutting.bits()[name]) for name in looking.bits())
    assert 0 < counts(looking)["clipped"] < 500  # of 3,000
