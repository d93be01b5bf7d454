"""`ratrain plan`: what takes how long, before anything is trained: an effect at a scale, or a study on a cluster."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain.cli.arguments import Command, count, json_argument, positive, resolve_manifest
from ratrain.cli.printing.document import print_line
from ratrain.cli.printing.tables import table
from ratrain.cli.studies.plan_ladder import ladder_file, plan_ladder
from ratrain.errors import Exit, UsageError

if TYPE_CHECKING:
    from ratrain.ablation.running.sizing import Layout, Need, Site
    from ratrain.statistics.resolution import Resolution, Row

_MOST_ARMS, _LEAST = 1000, 1e-12
_MOST_DEVICES = 2**14
_DRAWS, _SEED = 200, 0


def _percent(text: str) -> float:
    try:
        return positive(text.strip().removesuffix("%"))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected per cent of the tokens, such as 1%, got {text!r}") from None


def _probability(text: str) -> float:
    value = positive(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"expected a probability between 0 and 1, got {text!r}")
    return value


def _correlation(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not -1 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a correlation from -1 to below 1, got {text!r}")
    return value


def _arms(text: str) -> int:
    if (arms := count(text)) > _MOST_ARMS:
        raise argparse.ArgumentTypeError(f"expected a number up to {_MOST_ARMS}, got {text!r}")
    return arms


def _ordinary(text: str) -> float:
    if not _LEAST <= (value := positive(text)) <= 1 / _LEAST:
        raise argparse.ArgumentTypeError(f"expected a number from {_LEAST:g} to {1 / _LEAST:g}, got {text!r}")
    return value


def _devices(text: str) -> int:
    if (devices := count(text)) > _MOST_DEVICES:
        raise argparse.ArgumentTypeError(f"expected a number up to {_MOST_DEVICES:,}, got {text!r}")
    return devices


def _share(text: str) -> float:
    if (value := positive(text)) > 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and up to 1, got {text!r}")
    return value


# of each of the two plans, with their defaults
_OF_EFFECT = {"effect": 1.0, "power": 0.8, "arms": 1, "alpha": 0.05, "noise": None, "r": None, "slope": None,
              "tokens": None}  # fmt: skip
_OF_CLUSTER = {"nodes": 1, "gpus": 1, "mtbf": math.inf, "repair": 10.0, "price": None, "tflops": 400.0,
               "efficiency": 0.9, "per_gpu": 1, "packing": 1.0, "memory": 80.0, "disk": 1.0, "save": None,
               "restart": 60.0, "gpus_per_run": None}  # fmt: skip


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="a study, a ladder or a manifest: its time on a cluster"
    )
    parser.add_argument("--scale", metavar="S", help="scale of the runs (study, or that of FILE)")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="FILE: change one key in every run")
    parser.add_argument("--patches", action="append", default=[], metavar="DIR", type=Path, help="folder of patches")
    parser.add_argument("--rate", type=_ordinary, metavar="TOK/S", help="tokens/s of one device (FILE: its baseline's)")
    json_argument(parser)
    parser.set_defaults(base=None)
    effect = parser.add_argument_group("without FILE: an effect at a scale")
    effect.add_argument("--effect", type=_percent, metavar="P%", help="effect in per cent of the tokens (1%%)")
    effect.add_argument("--power", type=_probability, metavar="P", help="chance to find it (0.8)")
    effect.add_argument("--arms", type=_arms, metavar="N", help="arms beside the baseline (1)")
    effect.add_argument("--alpha", type=_probability, metavar="A", help="chance of any false claim (0.05)")
    effect.add_argument("--noise", type=_ordinary, metavar="NATS", help="standard deviation of a run over seeds")
    effect.add_argument("--r", type=_correlation, metavar="R", help="correlation of paired seeds")
    effect.add_argument("--slope", type=_ordinary, metavar="NATS", help="loss that 1%% more tokens saves")
    effect.add_argument("--tokens", type=count, metavar="N", help="tokens of a run")
    _cluster_arguments(parser.add_argument_group("with FILE: a study or a run on a cluster (docs/scale.md)"))


def _cluster_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--nodes", type=_devices, metavar="N", help="machines (1)")
    group.add_argument("--gpus", type=_devices, metavar="G", help="devices of a machine (1)")
    group.add_argument("--mtbf", type=_ordinary, metavar="HOURS", help="mean time of one machine between failures")
    group.add_argument("--repair", type=_ordinary, metavar="MIN", help="minutes until a failed one is back (10)")
    group.add_argument("--price", type=_ordinary, metavar="P", help="of a device for an hour, in any currency")
    group.add_argument("--gpus-per-run", type=_devices, metavar="N", help="devices of a run (compares all that fit)")
    group.add_argument("--per-gpu", type=count, metavar="K", help="compare K runs on each device with one (1)")
    group.add_argument("--packing", type=_ordinary, metavar="X", help="what those K do, over what one does alone (1)")
    group.add_argument("--tflops", type=_ordinary, metavar="T", help="model TFLOP/s of a device, without --rate (400)")
    group.add_argument("--efficiency", type=_share, metavar="E", help="share of it on each of several devices (0.9)")
    group.add_argument("--memory", type=_ordinary, metavar="GIB", help="memory of a device (80)")
    group.add_argument("--disk", type=_ordinary, metavar="GB/S", help="rate at which a run reads and writes (1)")
    group.add_argument("--save", type=_ordinary, metavar="S", help="seconds for which a checkpoint stops training")
    group.add_argument("--restart", type=_ordinary, metavar="S", help="seconds from a loss to the next step (60)")


def _plan(args: argparse.Namespace) -> int:
    """Print what an effect takes at a scale, or how long a study or a run takes on a cluster whose machines fail."""
    mine, others = (_OF_CLUSTER, _OF_EFFECT) if args.file else (_OF_EFFECT, _OF_CLUSTER)
    for name in others:
        if getattr(args, name) is not None:
            word = "is for a plan without FILE" if args.file else "needs a FILE, a study or a manifest"
            raise UsageError(f"--{name.replace('_', '-')}: {word}; see ratrain plan --help")
    for name, value in mine.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.file:
        return _on_cluster(args)
    for name in ("set", "patches"):
        if getattr(args, name):
            raise UsageError(f"--{name}: needs a FILE, a study or a manifest; see ratrain plan --help")
    args.scale = args.scale or "study"
    return _of_effect(args)


def _of_effect(args: argparse.Namespace) -> int:
    """Prints the seeds, runs and device time that an effect takes at a scale."""
    from ratrain.statistics.resolution import rows

    scale = _resolution(args)
    found = list(rows(scale, args.effect, arms=args.arms, wanted=args.power, alpha=args.alpha))
    if args.json:
        asked = {"effect_percent": args.effect, "power": args.power, "arms": args.arms, "alpha": args.alpha}
        known = {"scale": args.scale, "known": asdict(scale)}
        print_line({**asked, **known, "plans": [asdict(row) for row in found]})
        return Exit.DONE
    nats, runs = 1e3 * args.effect * scale.slope, f"a run varies by {1e3 * scale.sd:.3g} mnat"
    print(f"{args.effect:g} % of the tokens is {nats:.3g} mnat at {args.scale}; {runs}")
    print(f"{args.arms} arm{'s' * (args.arms > 1)} beside the baseline, power {args.power:g}, alpha {args.alpha:g}\n")
    print(
        table(
            [
                ("runs share", "r", "sd of a pair", "seeds", "as needed", "runs", "tokens", "device time"),
                *map(_cells, found),
            ]
        )
    )
    print("\nseeds: fixed in advance, an arm stops at its verdict; as needed: their mean number")
    print(f"source: {scale.source}")
    return Exit.DONE


def _cells(row: Row) -> tuple[str, ...]:
    known = (row.pairing, f"{row.r:.2f}", f"{row.percent:.2f} %")
    if row.seeds is None:
        return (*known, "over 200", "-", "-", "-", "-")
    hours = "-" if row.hours is None else f"{row.hours:,.0f} h" if row.hours >= 10 else f"{60 * row.hours:,.0f} min"
    return (*known, str(row.seeds), f"{row.as_needed:.1f}", str(row.runs), f"{row.tokens or 0:.3g}", hours)


def _resolution(args: argparse.Namespace) -> Resolution:
    """Returns what is known of the scale, with the figures of the command line. Raises UsageError."""
    from ratrain.statistics.resolution import KNOWN, Resolution

    given = {"sd": args.noise, "r": args.r, "slope": args.slope, "tokens": args.tokens, "rate": args.rate}
    given = {name: value for name, value in given.items() if value is not None}
    known = KNOWN.get(args.scale)
    if known is None:
        needed = {"sd": "--noise", "slope": "--slope", "tokens": "--tokens"}
        if missing := ", ".join(word for name, word in needed.items() if name not in given):
            message = f"its noise is not known (it is for {', '.join(KNOWN)}); give {missing}"
            raise UsageError(f"--scale {args.scale}: {message}")
        known = Resolution(0.0, 0.0, 0.0, 0, 0.0, "")
    stated = f"the command line ({', '.join(given)})" if given else ""
    return replace(known, **given, source="; ".join(filter(None, (known.source, stated))))


# -- a study on a cluster ----------------------------------------------------------------------------------------------


def _on_cluster(args: argparse.Namespace) -> int:
    """Prints the finishing time of the runs of FILE by devices of a run, with failures drawn at random."""
    from ratrain.ablation.running.sizing import check_layout, choices, lay_out

    if file := ladder_file(args.file):
        return plan_ladder(file, args, partial(_fastest, args))
    needs = _needs(args)
    site = _site(args, needs[0])
    sizes = [args.gpus_per_run] if args.gpus_per_run else choices(needs, site.cluster, site.memory)
    if not sizes:
        sizes = [site.cluster.nodes * site.cluster.gpus]
    for gpus in sizes:
        check_layout(needs, gpus, 1, site)
    try:
        found = [lay_out(needs, site, gpus=gpus, draws=_DRAWS, seed=_SEED) for gpus in sizes]
        if args.per_gpu > 1:
            check_layout(needs, 1, args.per_gpu, site)
            found.append(lay_out(needs, site, gpus=1, packed=args.per_gpu, draws=_DRAWS, seed=_SEED))
    except ValueError as error:
        raise UsageError(f"--mtbf {args.mtbf:g}: {error}") from None
    best, given = min(found, key=lambda layout: layout.foretold.finish), None
    with contextlib.suppress(ValueError):  # the run would rarely live up to its next checkpoint
        given = lay_out(needs, site, gpus=best.gpus, packed=best.packed, every=needs[0].every, draws=_DRAWS, seed=_SEED)
    if args.json:
        known = {"needs": [asdict(need) for need in needs], "site": asdict(site)}
        layouts = {"layouts": [asdict(each) for each in found], "as_given": given and asdict(given)}
        print_line({**known, **layouts})
        return Exit.DONE
    print("\n".join(_cluster_lines(args, needs, site, found, best, given)))
    return Exit.DONE


def _fastest(args: argparse.Namespace, needs: Sequence[Need]) -> Layout:
    """Returns the division of the cluster that is done first. Raises UsageError if none holds the runs."""
    from ratrain.ablation.running.sizing import check_layout, choices, lay_out

    site = _site(args, needs[0])
    sizes = [args.gpus_per_run] if args.gpus_per_run else choices(needs, site.cluster, site.memory)
    for gpus in sizes or [site.cluster.nodes * site.cluster.gpus]:
        check_layout(needs, gpus, 1, site)
    try:
        found = [lay_out(needs, site, gpus=gpus, draws=_DRAWS, seed=_SEED) for gpus in sizes]
    except ValueError as error:
        raise UsageError(f"--mtbf {args.mtbf:g}: {error}") from None
    return min(found, key=lambda layout: layout.foretold.finish)


def _needs(args: argparse.Namespace) -> list[Need]:
    from ratrain.ablation.plan import make_plan
    from ratrain.ablation.running.sizing import needs_of_run, needs_of_study
    from ratrain.run.check import check

    file = _study(args.file)
    if file:
        return needs_of_study(make_plan(file, scale=args.scale, overrides=args.set, patches=args.patches))
    manifest, _ = resolve_manifest(args.file, args)
    return needs_of_run(manifest, check(manifest))


def _study(name: str) -> Path | None:
    """Returns the file of the study called `name`; None if it is a manifest, or nothing."""
    from ratrain.ablation.manifest import find_ablation, is_ablation
    from ratrain.errors import MissingError

    try:
        file = find_ablation(name)
    except MissingError:
        return None
    return file if is_ablation(file) else None


def _site(args: argparse.Namespace, base: Need) -> Site:
    """Returns the cluster of the command line, in seconds, bytes and FLOP/s."""
    from ratrain.ablation.running.sizing import Site
    from ratrain.statistics.failures import Cluster

    cluster = Cluster(args.nodes, args.gpus, 3600 * args.mtbf, 60 * args.repair)
    flops = 1e12 * args.tflops if args.rate is None else args.rate * base.token_flops
    memory, disk = 2**30 * args.memory, 1e9 * args.disk
    return Site(cluster, flops, args.efficiency, args.packing, memory, disk, args.restart, args.save)


def _cluster_lines(
    args: argparse.Namespace, needs: list[Need], site: Site, found: list[Layout], best: Layout, given: Layout | None
) -> Iterator[str]:
    runs, cluster = sum(sum(need.rounds) for need in needs), site.cluster
    yield f"{args.file}: {_many(runs, 'run')} of {needs[0].tokens:.3g} tokens, {needs[0].state / 2**30:.1f} GiB of "\
          f"state each{'; all seeds that it may need' if len(needs[0].rounds) > 1 else ''}"  # fmt: skip
    devices = _many(cluster.nodes * cluster.gpus, "device")
    yield f"{devices} on {_many(cluster.nodes, 'machine')}; {_failing(cluster.mtbf, cluster.nodes)}\n"
    head = ("devices a run", "at a time", "looks", "a run alone", "all done", "9 of 10 by", "device-hours", "lost")
    yield table([(*head, "checkpoint.every", *["price"] * bool(args.price)), *(_row(each, args) for each in found)])
    if math.isfinite(cluster.mtbf):
        went = f"all done in {_time(given.foretold.finish)}, {_lost(given)} lost" if given else "rarely done"
        yield f"\nwith checkpoint.every = {needs[0].every} as it is, {_devices_of(best)} a run: {went}"
    yield "\n" + "\n".join(_assumed(args, needs[0], site))


def _row(layout: Layout, args: argparse.Namespace) -> tuple[str, ...]:
    seen = layout.foretold
    hours = seen.spent / 3600
    every = f"{layout.every:,} ({_time(layout.interval)})" if layout.every else "any: none is lost"
    price = [f"{hours * args.price:,.0f}"] if args.price else []
    spent = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2f}"
    times = map(_time, (layout.alone, seen.finish, seen.late))
    counts = (_devices_of(layout), str(layout.at_once), str(layout.looks))
    return (*counts, *times, spent, _lost(layout), every, *price)


def _devices_of(layout: Layout) -> str:
    return str(layout.gpus) if layout.packed == 1 else f"1/{layout.packed}"


def _lost(layout: Layout) -> str:
    return f"{100 * layout.foretold.lost / layout.foretold.spent:.1f} %"


def _failing(mtbf: float, nodes: int) -> str:
    if not math.isfinite(mtbf):
        return "none fails (--mtbf)"
    return f"each fails every {_time(mtbf)}, one of them every {_time(mtbf / nodes)}"


def _assumed(args: argparse.Namespace, need: Need, site: Site) -> Iterator[str]:
    speed = f"{site.flops / 1e12:.3g} TFLOP/s of one device (--tflops, or --rate)"
    if args.rate is not None:
        speed = f"{args.rate:,.0f} tokens/s of one device"
    yield f"assumed: {speed}, {100 * site.efficiency:.0f} % of it on each of several (--efficiency),"
    told = "beside the steps" if need.asynchronous and site.stop is None else "between steps"
    yield f"  checkpoints of {need.checkpoint / 1e9:.3g} GB written {told} at {args.disk:g} GB/s (--disk, --save),"
    yield f"  {args.restart:g} s and the reading of one from a loss to the next step (--restart),"
    yield f"  a lost machine back after {args.repair:g} min (--repair)"


def _many(count_: int, what: str) -> str:
    return f"{count_:,} {what}{'s' * (count_ != 1)}"


def _time(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


COMMANDS: dict[str, Command] = {"plan": Command(_arguments, _plan)}
