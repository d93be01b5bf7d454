"""Converts a defconfig of the reference to a manifest, by either reading."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ratrain.errors import Fault, ManifestError
from ratrain.legacy.readers import environment as surroundings
from ratrain.legacy.readers.conversion import (
    Conversion,
    Head,
    Run,
    distinct,
    is_plain,
    run_of,
    single,
    slug,
    study,
    values_of,
)
from ratrain.legacy.readers.defconfig import Defconfig, read_defconfig, verdicts
from ratrain.legacy.readers.intent import Intent
from ratrain.legacy.readers.kconfig import Effective, olddefconfig
from ratrain.legacy.readers.options import Asked, Said, options, read_said
from ratrain.legacy.readers.recipe import SCALES
from ratrain.legacy.readers.runner import Launched, launched
from ratrain.legacy.readers.without_effect import without_effect

Reading = Literal["intent", "legacy"]
READINGS, PROFILES = ("intent", "legacy"), ("intended", "as_run")
Asking = tuple[str, str | None, Asked]  # name, step and options of a run


def convert_defconfig(
    path: Path,
    *,
    reading: Reading = "intent",
    profile: str = "intended",
    environment: Mapping[str, str] | None = None,
    accept_unknown: bool = False,
) -> Conversion:
    """Converts a defconfig. Raises ManifestError with all faults of the file.

    Unknown lines that select a part of the training are faults too, unless `accept_unknown`.
    """
    file = read_defconfig(path)
    idle, refused = verdicts(file)
    refused += [] if accept_unknown else file.unknown
    if refused or (reading == "intent" and file.faults):
        raise ManifestError([*refused, *(file.faults if reading == "intent" else ())])
    given = surroundings.overrides(environment or {})
    ignored = [*file.ignored, *file.unknown]
    if reading == "legacy":
        ignored += [*file.faults, *_lost(file, olddefconfig(file.declared, file.taken))]
    asked, runs = _read(file, reading, profile, given)
    known = {fault.where for fault in (*ignored, *idle)}
    same = without_effect(file, lambda other: comes_to(other, reading, profile, given))
    idle += [fault for fault in same if fault.where not in known]
    notes = [f"line {fault.where.rpartition(':')[2]}, {fault.key}: {fault.message}" for fault in (*ignored, *idle)]
    head = f"{file.name}, converted from {file.label}: reading {reading}, profile {profile}"
    found = conclude(
        file.name, runs, head, asked,
        notes=notes, baseline=surroundings.baseline(environment or {}),
    )  # fmt: skip
    found.ignored = ignored
    found.notices += surroundings.notices(environment or {})
    found.jobs, found.dry_run = _command(file)
    return found


def _read(file: Defconfig, reading: Reading, profile: str, given: Mapping[str, Said]) -> tuple[list[Asking], list[Run]]:
    """Returns the options of each run, and the runs. Raises ManifestError."""
    if reading == "legacy":
        asked, numbered = list(_legacy(file, olddefconfig(file.declared, file.taken))), "ratio"
    else:
        intent = Intent(file)
        asked, numbered = list(_intended(file, intent)), "recip" if intent.is_recip else "ratio"
    return asked, [run_of(name, each.also(given), study=numbered, profile=profile) for name, _, each in asked]


def comes_to(
    file: Defconfig, reading: Reading = "intent", profile: str = "intended", given: Mapping[str, Said] | None = None
) -> Any:
    """Returns all results that depend on the file's lines, to compare: runs and command, or the error."""
    try:
        asked, runs = _read(file, reading, profile, given or {})
    except ManifestError as error:
        return str(error)
    kept, _ = distinct(runs)
    names = [run.tree["log"].get("run_name") for run in kept] if len(kept) == 1 else []
    return asked[0][2].value("model-name"), [(run.base, values_of(run.tree)) for run in kept], names, _command(file)


def _command(file: Defconfig) -> tuple[int, bool]:
    """Returns options of the command: the number of parallel runs, and whether it is a dry run."""
    jobs = file.declared.get("PARALLEL_JOBS", file.declared.get("TEST_PARALLEL_JOBS", ""))
    return int(jobs) if jobs.isdecimal() else 1, file.declared.get("DRY_RUN") == "y"


def conclude(
    name: str, runs: list[Run], origin: str, asked: list[Asking], *, notes: list[str], baseline: str | None
) -> Conversion:
    """Returns the runs as one manifest; a `baseline` replaces the steps numbered 0."""
    if baseline:
        steps = [step or "" for _, step, _ in asked]
        left = [run for run, step in zip(runs, steps, strict=True) if not re.fullmatch("[A-Z]?0", step)]
        left = [run for run in left if not is_plain(run, baseline)]
        runs, baseline = (left, baseline) if left else (runs, None)  # else only the baseline itself is left
    kept, twins = distinct(runs)
    scale = SCALES[asked[0][2].value("model-name")][0]
    said = [f"  {text}" for text in notes]
    head = Head(name, origin, [*(["lines without effect, and why:", *said] if said else []), *twins], scale)
    is_study = len(kept) > 1 or baseline is not None
    text = study(head, kept, baseline) if is_study else single(head, kept[0])
    return Conversion(slug(name), text, kept, is_study, notices=twins)


def _intended(file: Defconfig, intent: Intent) -> Iterator[Asking]:
    trainer = "train_ra_mla.py" if file.declared.get("ENABLE_RA_MLA") == "y" else "train.py"
    for test in intent.tests():
        yield test.id, test.step, Asked("train_ra_mla.py" if test.step else trainer, intent.options(test))


def _legacy(file: Defconfig, effective: Effective) -> Iterator[Asking]:
    if (model := effective.values.get("MODEL", "")) != "gpt2":
        what = f"the old tools would train {model!r}" if model else "the old tools would choose several models"
        message = f"{what}; this trainer has GPT-2 only: MODEL_MODE_SINGLE=y, MODEL_SELECT_GPT2=y"
        raise ManifestError([Fault(file.label, "MODEL", message)])
    tests = list(launched(effective.values, file.name))
    if not tests:
        raise ManifestError([Fault(file.label, "", "the old runner made no test of this file; try --reading intent")])
    for one in tests:
        yield one.test.id, one.test.step, asked_by(one)


def asked_by(one: Launched) -> Asked:
    """Returns the options of an old command line, with the attributes its trainer read from config.py."""
    given: dict[str, Said] = {}
    words = iter(one.args)
    for word in words:
        name = word[2:]
        text = "y" if options()[name].type == "flag" else next(words)
        given[name] = read_said(name, text, by=word, where=word)
    for name, text in one.attributes.items():
        given[name] = read_said(name, text, by=f"{name} of config.py", where="config.py")
    return Asked(one.trainer, given)


def _lost(file: Defconfig, effective: Effective) -> Iterator[Fault]:
    """Yields the lines that the old tools dropped or changed."""
    for name in effective.ignored:
        yield Fault(file.where(name), name, "the old tools dropped it")
    for name, (said, became) in effective.changed.items():
        yield Fault(file.where(name), name, f"the old tools changed {said!r} to {became!r}")
