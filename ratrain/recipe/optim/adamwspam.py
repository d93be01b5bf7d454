"""SPAM, Spike-Aware Adam with Momentum Reset (Huang et al. 2025, arXiv:2501.06842), on torch's fused AdamW.

Its options count optimizer steps, one per call of `step`. Skipped steps count as well, as in the budget; a reset due
at a skipped step is omitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator
from torch import Tensor

from ratrain.recipe.groups import Group
from ratrain.recipe.optim._contract import Contract, device_of, rate, stated
from ratrain.recipe.optim.adamw import AdamW
from ratrain.registry import register

Gradients = dict[Tensor, Tensor]  # by parameter

_HISTORY = 10  # norms, including the newest, needed before any is a spike


class SpikeAware(AdamW):
    """Options that SPAM and the reference's version of it have in common."""

    theta: PositiveFloat = Field(
        default=5000.0, description="a squared coordinate of the gradient is cut to theta times its running mean"
    )
    interval: NonNegativeInt = Field(default=500, description="steps between resets of the moments; 0: none")
    warmup: NonNegativeInt = Field(default=150, description="steps after a reset until the learning rate is back")
    spike_z: NonNegativeFloat = Field(
        default=0.0,
        description="standard deviations above its history at which a gradient's norm is a spike, that halves the "
        "first moment; 0: no such test (the paper has none)",
    )
    spike_window: int = Field(default=100, ge=_HISTORY, description="number of norms in that history")


@register("adamwspam")
class AdamWSPAM(SpikeAware):
    """AdamW that cuts off spikes of the gradient, and forgets its moments every `interval` steps."""

    grace: NonNegativeInt = Field(default=50, description="steps without clipping after the start or a reset")

    @model_validator(mode="after")
    def _recovers(self):
        if self.interval and self.warmup > self.interval:
            message = f"the learning rate would never be back: expected at most interval = {self.interval}"
            raise ValueError(f"warmup = {self.warmup}: {message}")
        return self

    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        """Builds the optimizer over `groups`; its learning rate is a 0-d tensor on the parameters' device."""
        return SPAM(groups, self)


class Spikes(Contract, torch.optim.AdamW):
    """The part shared by SPAM and the reference's SPAM: counts steps, tests norms, and resets moments.

    `own`: calls (on the CPU, since it controls the step), norms [window] of the gradients, newest last, stored (the
    number of norms ever added), and the tallies.
    """

    tallies = ("spikes", "clipped", "resets")

    def __init__(self, groups: Sequence[Group], section: SpikeAware, *, amsgrad: bool):
        made, eps = stated(groups, eps=section.eps), section.eps
        super().__init__(made, lr=rate(groups), betas=section.betas, eps=eps, amsgrad=amsgrad, fused=True)
        device = device_of(groups)
        self._z = section.spike_z
        self.own = {
            "calls": torch.zeros((), dtype=torch.int64),
            "norms": torch.zeros(section.spike_window, device=device),
            **{name: torch.zeros((), dtype=torch.int64, device=device) for name in ("stored", *self.tallies)},
        }
        self._calls = self.own["calls"].numpy()  # the same memory, read without torch's item()

    @torch.no_grad()
    def step(self, closure=None):
        """Makes one step; restores the scheduled `lr` of each group afterwards."""
        assert closure is None
        done = int(self._calls)
        self._calls += 1
        self._prepare(done)
        scheduled, scale = [group["lr"] for group in self.param_groups], self._warmth(done)
        try:
            if scale != 1:
                for group in self.param_groups:
                    group["lr"] = group["lr"] * scale
            super().step()
        finally:
            for group, lr in zip(self.param_groups, scheduled, strict=True):
                group["lr"] = lr

    def _prepare(self, done: int) -> None:
        """Runs before the update, after `done` earlier steps."""
        raise NotImplementedError

    def _warmth(self, done: int) -> float:
        """Returns the factor on the scheduled learning rate."""
        raise NotImplementedError

    def _gradients(self) -> Gradients:
        """Returns the gradients by parameter."""
        return {p: p.grad for group in self.param_groups for p in group["params"] if p.grad is not None}

    def _norm(self) -> Tensor:
        """Returns the norm of all gradients as one vector; 0-d, fp32."""
        return self._total(self._gradients(), _square).sqrt().float()

    def _total(self, gradients: Gradients, of: Callable[[Gradients], Tensor]) -> Tensor:
        """Adds up `of` gradients, those of divided parameters over all processes that divide them."""
        if not self.divided:
            return of(gradients)
        whole = of({p: gradient for p, gradient in gradients.items() if p not in self.divided})
        rows = of({p: gradient for p, gradient in gradients.items() if p in self.divided})
        return whole + next(iter(self.divided.values())).sum(rows)

    def _moments(self, key: str) -> list[Tensor]:
        return [state[key] for state in self.state.values() if key in state]

    def _goes_ahead(self) -> Tensor:
        """Whether this step is not skipped, as 0-d bool."""
        if self.found_inf is None:
            return torch.ones((), dtype=torch.bool, device=self.own["norms"].device)
        return self.found_inf == 0

    def _count(self, name: str, amount: Tensor | float = 1.0) -> None:
        self.own[name].add_(torch.where(self._goes_ahead(), amount, 0.0).long())

    def _judge(self, norm: Tensor) -> None:
        """Multiplies m by 0.5 and v by 0.9 if `norm` is a spike against earlier norms, and adds it to the history."""
        norms, stored, goes = self.own["norms"], self.own["stored"], self._goes_ahead()
        history = norms[1:].double()  # in float64 the mean of equal norms is exactly that norm
        n = stored.clamp(max=len(history))
        held = torch.arange(len(history), device=norms.device) >= len(history) - n
        mean = (history * held).sum() / n
        deviation = ((history - mean).square() * held).sum().div(n).sqrt()
        is_spike = goes & (stored >= _HISTORY - 1) & (deviation > 0) & (norm - mean > self._z * deviation)
        for key, factor in (("exp_avg", 0.5), ("exp_avg_sq", 0.9)):
            if moments := self._moments(key):
                torch._foreach_mul_(moments, torch.where(is_spike, factor, 1.0))
        self._count("spikes", is_spike.float())
        kept = goes & norm.isfinite()
        norms.copy_(torch.where(kept, torch.cat([norms[1:], norm[None]]), norms))
        stored.add_(kept)

    def _reset(self, *keys: str) -> None:
        goes = self._goes_ahead()
        for tensor in (tensor for key in keys for tensor in self._moments(key)):
            tensor.masked_fill_(goes, 0)
        self._count("resets")


class SPAM(Spikes):
    """Cuts |g| at sqrt(theta v / (1 - beta2^k)), with g the clipped gradient that enters the moments."""

    def __init__(self, groups: Sequence[Group], section: AdamWSPAM):
        super().__init__(groups, section, amsgrad=False)
        self._section = section

    def _prepare(self, done: int) -> None:
        interval = self._section.interval
        if interval and done and done % interval == 0:
            # not at the end of the previous step: pruning reads the moments in between
            self._reset("exp_avg", "exp_avg_sq", "step")
        cuts = (done % interval if interval else done) >= self._section.grace
        norm = self._norm() if self._z else None  # of the gradients before the cut
        if cuts:
            self._cut()
        if norm is not None:
            self._judge(norm)

    def _cut(self) -> None:
        if gradients := {p: g for p, g in self._gradients().items() if p in self.state}:
            self._count("clipped", self._total(gradients, self._cut_these))

    def _cut_these(self, gradients: Gradients) -> Tensor:
        """Cuts gradients in place; returns the number of coordinates, 0-d."""
        states = [self.state[p] for p in gradients]
        steps = torch.stack([state["step"] for state in states])
        factor = self._section.theta / (1 - self._section.betas[1] ** steps).clamp(min=torch.finfo(steps.dtype).tiny)
        if self.grad_scale is not None:  # gradients are not yet divided by grad_scale
            factor = factor * self.grad_scale.square()
        squares = torch._foreach_mul([state["exp_avg_sq"] for state in states], factor.unbind())
        found = _exceeding(list(gradients.values()), squares)
        if not found:
            return torch.zeros((), device=steps.device)
        kept, limits = zip(*found, strict=True)
        torch._foreach_sqrt_(limits)
        for limit in limits:  # without a history there is no spike; a limit of 0 would never allow one
            torch.threshold_(limit, 0.0, math.inf)
        return cut(kept, limits)

    def _warmth(self, done: int) -> float:
        interval, warmup = self._section.interval, self._section.warmup
        if not interval or done < interval or done % interval >= warmup:
            return 1.0
        return (1 - math.cos(math.pi * (done % interval + 1) / warmup)) / 2


def _square(gradients: Gradients) -> Tensor:
    """Returns the squared norm of all gradients as one vector; 0-d, float64."""
    return torch.stack(torch._foreach_norm(list(gradients.values()))).double().square().sum()


def _exceeding(gradients: Sequence[Tensor], squares: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs gradients with their squared limits: on a CPU only gradients that exceed them, elsewhere all.

    Few gradients exceed their limits, and the test takes half the time of the cut. On other devices the test would
    synchronise.
    """
    pairs = [(gradient, square) for gradient, square in zip(gradients, squares, strict=True) if gradient.numel()]
    if not pairs or gradients[0].device.type != "cpu":
        return pairs
    gradients, squares = ([pair[side] for pair in pairs] for side in (0, 1))
    room = torch._foreach_addcmul(squares, gradients, gradients, value=-1.0)
    least = torch.stack([each.amin() for each in room]).numpy()
    return [pair for pair, least_of in zip(pairs, least, strict=True) if not least_of >= 0]


def cut(gradients: Sequence[Tensor], limits: Sequence[Tensor]) -> Tensor:
    """Clamps each coordinate to [-limit, limit] in place; returns the number outside, 0-d. Overwrites `limits`."""
    gradients, limits = list(gradients), list(limits)
    inside = torch._foreach_clamp_max(gradients, limits)
    torch._foreach_neg_(limits)
    torch._foreach_clamp_min_(inside, limits)
    torch._foreach_sub_(gradients, inside)
    torch._foreach_sign_(gradients)  # the squared norm of signs is a count, in fewer passes than compare and sum
    outside = torch.stack(torch._foreach_norm(gradients)).square().sum()
    torch._foreach_copy_(gradients, inside)
    return outside.round()
