"""The command line: `ratrain MANIFEST` trains; the other commands inspect, check, compare and prepare."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import NoReturn

from ratrain import __version__
from ratrain.cli import completion, evaluate, export, profile, report, runs, text, train
from ratrain.cli import variants as look
from ratrain.cli.arguments import Command
from ratrain.cli.checks import coordinates, soundness
from ratrain.cli.checks import manifests as check
from ratrain.cli.checks import runs as check_runs
from ratrain.cli.printing.stdout import discard, outlive_reader, write_any_text
from ratrain.cli.studies import ablate, ladder, plan, try_ideas
from ratrain.errors import Exit, ManifestError, MissingError, RatrainError
from ratrain.plugins import offered
from ratrain.waiting import settle

COMMANDS = train.COMMANDS | ablate.COMMANDS | look.COMMANDS | check.COMMANDS | soundness.COMMANDS | text.COMMANDS
COMMANDS |= runs.COMMANDS | report.COMMANDS | profile.COMMANDS | export.COMMANDS | evaluate.COMMANDS
COMMANDS |= check_runs.COMMANDS | coordinates.COMMANDS | ladder.COMMANDS | try_ideas.COMMANDS | plan.COMMANDS
COMMANDS |= completion.commands(lambda: _every())

# these continue after the reader of stdout closed the pipe
_WORK = {"train", "--ablate", "--ladder", "try", "calibrate", "prepare"}

_EPILOG = """\
examples:
  ratrain v9                                        train a variant by its id (or file, or path)
  ratrain v9 --scale tiny --set schedule.lr=1e-3    smaller, with one key changed
  ratrain manifests/unified_ra_v9.toml --dry-run    build, compile, two steps; time, memory and disk of the run
  ratrain try my_idea.toml                          from an idea to a verdict, in a quarter of an hour
  ratrain --ablate ablation_kv.toml                 a study: many arms and seeds, compared with a baseline
  ratrain --ladder ladder_tiny.toml                 the same arms at several scales: does a gain hold?
  ratrain legacy/defconfigs/gpt2-vanilla-baseline   a configuration of the reference (docs/legacy.md)
  ratrain list                                      every variant
  ratrain sample @last --prompt 'Enter HAMLET'      text from the newest run

commands (any other first word is a manifest; each command has --help):
{commands}

The same command again resumes its run.

exit codes: 0 done, 1 bug, 2 usage, 65 bad data or checkpoint, 66 input missing, 69 device or compiler unavailable,
70 gave up after crashes, 71 out of memory, 73 cannot create or locked, 74 I/O or disk full, 75 preempted (resumable),
76 diverged, 78 bad manifest, 130 interrupted twice
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. Every RatrainError becomes one message on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    settle()  # before anything loads torch
    try:
        _prepare_process()
        command, rest = split(words)
        if command in ("train", "--ablate", "--ladder", "check") and any(map(_may_be_foreign, rest)):
            for entry in offered("ratrain.manifests"):
                words = entry.load()(words)
            command, rest = split(words)
        if command in _WORK:
            outlive_reader()
        parser = parser_of(command)
        if isinstance(parser, _TrainParser) and rest:
            parser.first = rest[0]
        args = parser.parse_args(rest)
        args.argv = words
        code = _known(command).run(args) or Exit.DONE
        sys.stdout.flush()
        return code
    except RatrainError as error:
        if str(error):  # an error that is reported already has no text
            print(f"ratrain: {error}" if not isinstance(error, ManifestError) else error, file=sys.stderr)
        return error.exit
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:  # the reader of stdout closed the pipe: no failure, and nothing to report
        discard()
        return Exit.DONE
    except OSError as error:
        discard()
        print(f"ratrain: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return Exit.IO


def _prepare_process() -> None:
    """Makes stdout accept any text. Raises MissingError if the working directory is deleted: torch would abort."""
    write_any_text()
    try:
        os.getcwd()
    except FileNotFoundError:
        message = "the working directory was deleted; change to a folder that exists"
        raise MissingError(message) from None


def split(argv: list[str]) -> tuple[str, list[str]]:
    """Splits `argv` into a command of one or two words ("train" if it names none) and the arguments."""
    for option in ("--ablate", "--ladder"):  # at any position; the next word is its file
        if option in argv:
            return option, [word for word in argv if word != option]
    for count in (2, 1):
        if (name := " ".join(argv[:count])) in COMMANDS or name in _offered():
            return name, argv[count:]
    return "train", argv


class _TrainParser(argparse.ArgumentParser):
    """Lists all commands in its help text; only then are those of entry points imported."""

    first = ""  # word of the command line, which may be a misspelt command

    def error(self, message: str) -> NoReturn:
        from ratrain.config.find import did_you_mean

        super().error(message + did_you_mean(self.first, commands()))

    def format_help(self) -> str:
        lines = (f"  {name:11} {command.run.__doc__}" for name, command in _every().items())
        self.epilog = _EPILOG.format(commands="\n".join(lines))
        return super().format_help()


def commands() -> list[str]:
    """Returns the names of all commands, those of entry points last."""
    return [*COMMANDS, *_offered()]


def _offered() -> dict[str, EntryPoint]:
    """Returns the commands of entry points, which are not imported."""
    return {entry.name: entry for entry in offered("ratrain.commands")}


def _every() -> dict[str, Command]:
    """Returns all commands; imports those of entry points."""
    return {name: _known(name) for name in (*COMMANDS, *_offered())}


def _known(name: str) -> Command:
    return COMMANDS[name] if name in COMMANDS else _offered()[name].load()


def _may_be_foreign(word: str) -> bool:
    if word.endswith(".toml"):  # the common case, without an import
        return False
    from ratrain.config.find import find_foreign

    return find_foreign(word) is not None


def parser_of(command: str) -> argparse.ArgumentParser:
    """Returns the parser of a command's arguments; "train" names the command of a manifest."""
    known = _known(command)
    if command != "train":
        parser = argparse.ArgumentParser(prog=f"ratrain {command}", description=known.run.__doc__)
    else:
        parser = _TrainParser(
            prog="ratrain",
            description="Train one variant, described by a manifest.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--version", action="version", version=f"ratrain {__version__}")
    known.add_arguments(parser)
    return parser
