"""`ratrain plan`: the seeds, runs and time that an effect takes at a scale, before anything is trained."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from ratrain.cli.arguments import Command, count, positive
from ratrain.cli.tables import table
from ratrain.errors import Exit, UsageError

if TYPE_CHECKING:
    from ratrain.statistics.resolution import Resolution, Row

_MOST_ARMS, _LEAST = 1000, 1e-12


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


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--effect", type=_percent, default=1.0, metavar="P%", help="effect in per cent of the tokens (1%%)"
    )
    parser.add_argument("--power", type=_probability, default=0.8, metavar="P", help="chance to find it (0.8)")
    parser.add_argument("--scale", default="study", metavar="S", help="scale of the runs (study)")
    parser.add_argument("--arms", type=_arms, default=1, metavar="N", help="arms beside the baseline (1)")
    parser.add_argument(
        "--alpha", type=_probability, default=0.05, metavar="A", help="chance of any false claim (0.05)"
    )
    parser.add_argument("--noise", type=_ordinary, metavar="NATS", help="standard deviation of a run over seeds")
    parser.add_argument("--r", type=_correlation, metavar="R", help="correlation of paired seeds")
    parser.add_argument("--slope", type=_ordinary, metavar="NATS", help="loss that 1%% more tokens saves")
    parser.add_argument("--tokens", type=count, metavar="N", help="tokens of a run")
    parser.add_argument("--rate", type=_ordinary, metavar="TOK/S", help="tokens/s of one device")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _plan(args: argparse.Namespace) -> int:
    """Print the seeds, runs and device time that an effect takes at a scale."""
    from ratrain.statistics.resolution import rows

    scale = _resolution(args)
    found = list(rows(scale, args.effect, arms=args.arms, wanted=args.power, alpha=args.alpha))
    if args.json:
        asked = {"effect_percent": args.effect, "power": args.power, "arms": args.arms, "alpha": args.alpha}
        print(
            json.dumps({**asked, "scale": args.scale, "known": asdict(scale), "plans": [asdict(row) for row in found]})
        )
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


COMMANDS: dict[str, Command] = {"plan": Command(_arguments, _plan)}
