"""Old command lines: the options of train.py, train_ra_mla.py and the planned dispatcher, as one manifest."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ratrain.errors import Fault, ManifestError
from ratrain.legacy.readers import environment as surroundings
from ratrain.legacy.readers.conversion import Conversion, run_of
from ratrain.legacy.readers.options import Asked, Option, Said, Trainer, options, read_said
from ratrain.legacy.readers.to_manifest import Asking, conclude


@dataclass(frozen=True)
class Line:
    """The manifest of an old command line, and the options for `ratrain` beside it."""

    found: Conversion
    words: tuple[str, ...]


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all options of old command lines; defaults depend on the trainer and are set later."""
    made = argparse.ArgumentParser(
        prog="python -m ratrain.legacy.train",
        usage="%(prog)s [options]",
        description="Train as the reference's train.py and train_ra_mla.py did: the command line becomes a manifest.",
        epilog="docs/legacy.md lists the key of each option. Options of one trainer are accepted for both.",
        allow_abbrev=False,
    )
    for option in options().values():
        if not option.is_setting:
            _add(made, option)
    made.add_argument(
        "--profile", choices=("intended", "as_run"), default="intended", help="as_run: as the reference computed"
    )
    return made


def _add(made: argparse.ArgumentParser, option: Option) -> None:
    known = "; ".join(f"{who}: {value}" for who, value in option.defaults.items() if value != "")
    text = (option.idle or f"default of {known}" if known else option.idle or "no default").replace("%", "%%")
    if option.type == "flag":
        made.add_argument(f"--{option.name}", action="store_const", const="y", help=text)
        if option.off:
            made.add_argument(
                f"--no-{option.name}", dest=option.name.replace("-", "_"), action="store_const", const="n"
            )
    else:
        made.add_argument(f"--{option.name}", metavar=option.type.upper(), help=text)


def read_command_line(argv: Sequence[str], environment: Mapping[str, str]) -> Line:
    """Converts an old command line to runs. Raises ManifestError, or SystemExit if argparse refuses it."""
    parsed = vars(parser().parse_args(list(argv)))
    profile = parsed.pop("profile")
    given: dict[str, Said] = {}
    for key, text in parsed.items():
        if text is not None:
            name = key.replace("_", "-")
            given[name] = read_said(name, text, by=f"--{name}", where="command line")
    trainer = _trainer(given)
    steps = _steps(given)
    notes = [f"--{name}: {options()[name].idle}" for name in given if options()[name].idle]
    over = surroundings.overrides(environment)
    asked: list[Asking] = []
    for step in steps:
        own = {} if step is None else {"ra-mla-ablation-step": Said(step, "--ra-mla-ablation-step", "command line")}
        name = f"{given['optimizer'].value if 'optimizer' in given else 'adamw'}"
        asked.append((f"{name}_{'none' if step is None else f'step{step}'}", step, Asked(trainer, given | own | over)))
    runs = [run_of(name, each, study="ratio", profile=profile) for name, _, each in asked]
    name = _name(asked, argv, environment)
    origin = f"converted from a command line of {trainer}: {' '.join(argv)}"
    found = conclude(name, runs, origin, asked, notes=notes, baseline=surroundings.baseline(environment))
    found.notices += [*notes, *surroundings.notices(environment)]
    return Line(found, tuple(_words(given)))


def _trainer(given: Mapping[str, Said]) -> Trainer:
    """Returns the trainer: train_ra_mla.py if one option exists only there, or a step is named."""
    own = {name for name in given if {*options()[name].defaults} == {"ra_mla"}}
    steps = {"ra-step", "ablation-mode", "ablation-steps"} & {*given}
    return "train_ra_mla.py" if own or steps else "train.py"


def _steps(given: Mapping[str, Said]) -> list[str | None]:
    """Returns the steps that are named, [None] if none is. Raises ManifestError if options contradict each other."""
    named = [name for name in ("ra-mla-ablation-step", "ra-step", "ablation-steps") if name in given]
    if len(named) > 1:
        raise _fault(named[1], f"--{named[0]} names steps as well; leave one of the two out")
    if "ablation-mode" in given and named != ["ablation-steps"]:
        raise _fault("ablation-mode", 'expected the steps: --ablation-steps "V0,V1,V3"')
    kind = given["architecture"].value if "architecture" in given else None
    if kind == "vanilla" and named:
        raise _fault(named[0], "--architecture vanilla has no steps; leave one of the two out")
    if kind == "unified-ra" and not named:
        raise _fault("architecture", "unified-ra needs its step: --ra-step V1")
    if not named:
        return [None]
    steps = [word.strip() for word in given[named[0]].value.split(",") if word.strip()]
    if not steps or (len(steps) > 1 and named != ["ablation-steps"]):
        raise _fault(named[0], f"expected one step, got {given[named[0]].value!r}; --ablation-steps takes several")
    return list(dict.fromkeys(steps))


def _fault(name: str, message: str) -> ManifestError:
    return ManifestError([Fault("command line", f"--{name}", message)])


def _name(asked: Sequence[Asking], argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """Returns a name from the steps and a hash of the command line."""
    steps = [step for _, step, _ in asked if step is not None]
    what = f"{steps[0]}-to-{steps[-1]}" if len(steps) > 1 else steps[0] if steps else "gpt2"
    limits = [f"{name}={said.value}" for name, said in surroundings.overrides(environment).items()]
    return f"line-{what}-{hashlib.sha256(repr([*argv, *limits]).encode()).hexdigest()[:8]}".lower()


def _words(given: Mapping[str, Said]) -> list[str]:
    """Returns the options that `ratrain` takes as options, not as manifest keys."""
    words: list[str] = []
    if "device" in given and given["device"].value != "cuda":  # cuda fell back to the CPU, as auto does
        words += ["--device", given["device"].value]
    for name in ("output-dir", "checkpoint-dir"):
        if name in given:
            words += ["--out", given[name].value]
    if "dry-run" in given:
        words.append("--dry-run")
    return words
