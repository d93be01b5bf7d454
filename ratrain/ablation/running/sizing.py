"""What the runs of a study, or one run, need of a cluster, and how long they take there if machines fail."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ratrain.ablation.plan import Plan
from ratrain.ablation.running.seeds_as_needed import block_size
from ratrain.config.resolve import steps_total, tokens_per_step
from ratrain.config.schema import Manifest
from ratrain.errors import UsageError
from ratrain.run.check import Checked
from ratrain.statistics.failures import Cluster, Foretold, Work, best_interval, foretell, spanned

_SHARE = 0.5  # of a device's memory that states may fill; the rest is for activations
_COPIED = 20e9  # bytes/s from a device to pinned memory of its host, over PCIe 4
_FORWARD = 1 / 3  # of the FLOPs of training: those of an evaluation


@dataclass(frozen=True)
class Need:
    """What each run of one arm needs; `rounds` holds the number of its runs up to each look of the study."""

    arm: str
    rounds: tuple[int, ...]
    tokens: int
    flops: float  # to train and to evaluate
    token_flops: int
    step_flops: float
    batch: int  # sequences of a step
    state: int  # bytes of weights, gradients and optimizer state on a device that holds all
    checkpoint: int  # bytes
    every: int  # steps between checkpoints, as the manifest has them; 0: none before the end
    asynchronous: bool


@dataclass(frozen=True)
class Site:
    """The cluster and what is assumed of it.

    `flops`: model FLOP/s of one device; on several devices each makes `efficiency` of that. `packing`: what several
    runs side by side on one device do together, over what one does alone. `memory`: bytes of a device. `disk`: bytes/s
    at which a checkpoint is written and read. `restart`: seconds from a lost machine to the next step, without reading.
    `stop`: seconds for which a checkpoint stops training, if it is known.
    """

    cluster: Cluster
    flops: float
    efficiency: float
    packing: float
    memory: float
    disk: float
    restart: float
    stop: float | None = None


@dataclass(frozen=True)
class Layout:
    """A division of the cluster: `gpus` devices a run, or `packed` runs a device; checkpoints every `every` steps."""

    gpus: int
    packed: int
    at_once: int
    alone: float  # seconds of the longest run without a failure
    every: int
    interval: float  # seconds of training between checkpoints
    foretold: Foretold
    machines: int  # of a run
    looks: int


def needs_of_study(plan: Plan) -> list[Need]:
    """Returns the needs of a study's arms; seeds as needed count in full, as if no arm were decided.

    A budget of the study, and the order of tuning, ruler and tuned runs, are left out. Raises UsageError for budgets in
    seconds.
    """
    first = plan.study.seed.min if plan.study.seed.as_needed else None
    return [_need(arm.name, _looks(len(arm.seeds), first), arm.manifest, arm.built) for arm in plan.arms]


def _looks(seeds: int, first: int | None) -> tuple[int, ...]:
    """Returns the seeds of each round: those before the first look, then one by one; `_rounds` joins them."""
    return (first, *[1] * (seeds - first)) if first and seeds > first else (seeds,)


def needs_of_run(manifest: Manifest, built: Checked) -> list[Need]:
    """Returns the need of one run. Raises UsageError for a budget in seconds."""
    return [_need(manifest.id, (1,), manifest, built)]


def _need(arm: str, rounds: tuple[int, ...], manifest: Manifest, built: Checked) -> Need:
    steps, per_step = steps_total(manifest), tokens_per_step(manifest)
    if steps is None:
        raise UsageError(f"{arm}: its budget is in seconds, the same on any cluster; expected one in tokens or steps")
    evaluations = 1 + (steps - 1) // manifest.eval.every if manifest.eval.every else 1
    evaluated = evaluations * manifest.eval.windows * manifest.model.block_size
    held = type(manifest.optim).held
    copies = 4 if manifest.train.precision in ("bf16", "fp8") else 0  # bf16 weights and their gradients
    return Need(
        arm,
        rounds,
        tokens=steps * per_step,
        flops=built.train_flops_per_token * (steps * per_step + _FORWARD * evaluated),
        token_flops=built.train_flops_per_token,
        step_flops=float(built.train_flops_per_token * per_step),
        batch=manifest.train.batch,
        state=(4 * (2 + held) + copies) * built.parameters,
        checkpoint=4 * (1 + held) * built.parameters,
        every=manifest.checkpoint.every,
        asynchronous=manifest.checkpoint.asynchronous != "off",
    )


def choices(needs: Sequence[Need], cluster: Cluster, memory: float) -> list[int]:
    """Returns the numbers of devices that a run can have: those that hold its state and divide its batch.

    They are the divisors of a machine's devices, and those of 1, 2, 4, 8 and so on whole machines.
    """
    most = cluster.nodes * cluster.gpus
    inside = [gpus for gpus in range(1, cluster.gpus) if cluster.gpus % gpus == 0]
    several = [cluster.gpus * 2**power for power in range(cluster.nodes.bit_length())]
    return [gpus for gpus in (*inside, *several) if gpus <= most and _fits(needs, gpus, 1, memory)]


def _places(gpus: int, cluster: Cluster) -> bool:
    """Whether a run of so many devices leaves no device of its machines unused."""
    return (cluster.gpus % gpus if gpus < cluster.gpus else gpus % cluster.gpus) == 0


def _fits(needs: Sequence[Need], gpus: int, packed: int, memory: float) -> bool:
    return all(packed * need.state / gpus <= _SHARE * memory and need.batch % gpus == 0 for need in needs)


def check_layout(needs: Sequence[Need], gpus: int, packed: int, site: Site) -> None:
    """Raises UsageError if runs of `gpus` devices, or `packed` runs a device, do not fit."""
    cluster = site.cluster
    if gpus > cluster.nodes * cluster.gpus:
        raise UsageError(f"--gpus-per-run {gpus}: the cluster has {cluster.nodes * cluster.gpus} devices")
    if not _places(gpus, cluster):
        raise UsageError(f"--gpus-per-run {gpus}: leaves devices of a machine unused; expected a divisor or a multiple "
                         f"of --gpus {cluster.gpus}")  # fmt: skip
    for need in needs:
        if need.batch % gpus:
            raise UsageError(f"--gpus-per-run {gpus}: does not divide train.batch = {need.batch} of {need.arm}")
        if (each := packed * need.state / gpus) > _SHARE * site.memory:
            what = f"weights, gradients and optimizer of {need.arm} take {each / 2**30:.1f} GiB of a device"
            advice = "expected more devices a run" if packed == 1 else "expected fewer runs a device"
            raise UsageError(f"{what}, and half of {site.memory / 2**30:.0f} GiB is for activations; {advice}")


def lay_out(
    needs: Sequence[Need], site: Site, *, gpus: int, packed: int = 1, every: int | None = None, draws: int, seed: int
) -> Layout:
    """Simulates the runs with `gpus` devices each, or `packed` of them on a device.

    `every`: steps between checkpoints; None: as few as lose least. Raises ValueError if a run rarely lives up to its
    next checkpoint.
    """
    cluster, longest = site.cluster, max(needs, key=lambda need: need.flops)
    machines = spanned(gpus, cluster)
    rate = _rate(site, gpus, packed)
    if every is None:
        every = _best_every(longest, site, rate, gpus=gpus, machines=machines)
    slots = Cluster(cluster.nodes, cluster.gpus * packed, cluster.mtbf, cluster.repair)
    places = cluster.nodes * cluster.gpus * packed // gpus
    rounds = [
        [work for need, count in part for work in [_work(need, site, rate, gpus=gpus, every=every)] * count]
        for part in _rounds(needs, places)
    ]
    found = foretell(rounds, slots, draws=draws, seed=seed).shared(packed)
    at_once = min(places, max(map(len, rounds)))
    step = longest.step_flops / rate
    return Layout(gpus, packed, at_once, longest.flops / rate, every, every * step, found, machines, len(rounds) - 1)


def _rounds(needs: Sequence[Need], places: int) -> Iterator[list[tuple[Need, int]]]:
    """Yields the runs of each round; after the first look a round has as many seeds as a study with `places` takes."""
    yield [(need, need.rounds[0]) for need in needs]
    left = [need for need in needs if len(need.rounds) > 1]
    at, last = 1, max(len(need.rounds) for need in needs)
    while at < last:
        size = min(block_size(len(left), places), last - at)
        yield [(need, sum(need.rounds[at : at + size])) for need in left if at < len(need.rounds)]
        at += size


def _rate(site: Site, gpus: int, packed: int) -> float:
    """Returns the model FLOP/s of one run."""
    together = site.packing if packed > 1 else 1.0
    return site.flops * gpus * (site.efficiency if gpus > 1 else 1.0) * together / packed


def _stop(need: Need, site: Site, gpus: int) -> float:
    """Returns the seconds for which a checkpoint stops training."""
    if site.stop is not None:
        return site.stop
    return need.checkpoint / (_COPIED * gpus if need.asynchronous else site.disk)


def _best_every(need: Need, site: Site, rate: float, *, gpus: int, machines: int) -> int:
    """Returns the steps between checkpoints that lose least; 0, none before the end, if machines never fail."""
    interval = best_interval(_stop(need, site, gpus), site.cluster.mtbf / machines)
    if not math.isfinite(interval):
        return 0
    written = need.checkpoint / site.disk  # one must be on the disk before the next
    return max(1, round(max(interval, written) * rate / need.step_flops))


def _work(need: Need, site: Site, rate: float, *, gpus: int, every: int) -> Work:
    behind = need.asynchronous and site.stop is None
    interval = every * need.step_flops / rate if every else math.inf
    written = need.checkpoint / site.disk
    # one must be on the disk before the next
    save = max(_stop(need, site, gpus), written - interval if behind else 0.0)
    return Work(
        need.flops / rate,
        gpus,
        interval=interval,
        save=save,
        restart=site.restart + written,
        behind=written if behind else 0.0,
    )
