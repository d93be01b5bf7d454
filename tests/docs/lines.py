"""Command lines of the pages: their parse by the real parsers, and their tiny forms, which take seconds on one core."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator

from ratrain.cli import parser_of, split

# lines that are parsed alone, by the first pattern that is found in them: a page keeps the full command
PARSED_ONLY = {
    r"finewebedu|openwebtext|tinystories": "needs the hub",
    r"hellaswag|lambada|arc_easy": "needs the hub",
    r"wandb": "needs a tracker's service",
    r"--init-from": "needs released weights",
    r"--devices|^torchrun": "starts processes: tests/machine",
    r"^ratrain --ablate (?!first\.toml|gates\.toml --dry-run)": "trains a study: its arms are resolved instead",
    r"^ratrain --ablate gates\.toml$": "trains a study: its arms are resolved instead",
    r"^ratrain --ladder": "trains for half an hour: its rungs are planned instead",
    r"^ratrain report ladder_tiny": "needs the runs of a ladder: tests/ablation/ladder",
    r"^ratrain try": "trains for minutes: tests/ablation",
    r"^ratrain smoke": "trains every variant: tests/run",
    r"^ratrain replay series": "needs the runs of the series",
    r"best_model\.pt": "needs an old checkpoint: tests/legacy",
    r"--depths": "trains models of 16 layers: tests/run",
    r"--branch": "needs a run of a thousand steps: tests/storage",
    r"--follow": "ends when the run ends",
    r"path/to/|FILE": "names no file",
    r"~/": "writes into the home folder",
}
_FEW_STEPS = ("compile.scope=off", "train.budget={steps=2}", "eval.windows=2")
_MORE_STEPS = ("compile.scope=off", "train.budget={steps=4}")  # of a study, whose arms must get through a warm-up


def why_parsed_only(line: str) -> str | None:
    """The reason if the line must not run here."""
    return next((why for pattern, why in PARSED_ONLY.items() if re.search(pattern, line)), None)


def words_of(line: str) -> list[str] | None:
    """The words behind `ratrain` of a line that runs it, also by torchrun or behind variables; None of any other."""
    words = shlex.split(line.split(" > ")[0].split(" && ")[0])
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[:1] == ["ratrain"]:
        return words[1:]
    if "-m" in words and words[words.index("-m") + 1] == "ratrain":
        return words[words.index("-m") + 2 :]
    return None


def refusal(words: list[str], *, named: bool = False) -> str | None:
    """The message of the parser that refuses the words; None if it takes them.

    With `named`, arguments may be missing, as in a sentence that names a command.
    """
    said = io.StringIO()
    command, rest = split(words)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parser_of(command).parse_args(rest)
    except SystemExit as ended:
        message = said.getvalue()
        return message if ended.code and not (named and "arguments are required" in message) else None
    return None


def tiny(words: list[str]) -> list[str]:
    """The same command at the scale tiny, with few steps, uncompiled."""
    command, _ = split(words)
    if command in ("train", "profile", "--ablate") and words[:1] not in (["--help"], ["--version"]):
        recall = "recall" in words  # a scale as small as tiny, whose task has a vocabulary of its own
        kept, scale = (words, []) if recall else (list(_without(words, "--scale")), ["--scale", "tiny"])
        steps = _MORE_STEPS if command == "--ablate" else _FEW_STEPS
        return [*kept, *scale, *(word for key in steps for word in ("--set", key))]
    if command == "coordcheck":
        kept = _without(words, "--widths")
        return [*kept, "--widths", "64,128,256", "--seeds", "2", "--set", "model.n_layer=2"]
    if command == "eval" and "--tasks" not in words:
        return [*words, "--windows", "2"]
    return words


def _without(words: list[str], option: str) -> Iterator[str]:
    """The words without an option and its value."""
    skip = False
    for word in words:
        if not skip and word != option:
            yield word
        skip = word == option
