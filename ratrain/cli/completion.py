"""`ratrain completion SHELL`: a script for the shell, made by shtab from the parsers of all commands.

The script holds commands, options, and the ids of variants, scales and studies. Runs and files are looked up in the
working directory when a word is completed. Python does not run then.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping

from ratrain.cli.arguments import Command
from ratrain.cli.printing.completers import Completer, Words, completer_of, preamble, tail

SHELLS = ("bash", "zsh", "fish")


def commands(every: Callable[[], Mapping[str, Command]]) -> dict[str, Command]:
    """Returns the command completion; `every` gives all commands by name when it runs."""

    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("shell", choices=SHELLS, help="bash, zsh or fish; docs/commands.md tells where it goes")

    def run(args: argparse.Namespace) -> None:
        """Print a script that completes commands, options, variants, runs and files in a shell."""
        print(script(args.shell, every()))

    return {"completion": Command(arguments, run)}


def script(shell: str, known: Mapping[str, Command]) -> str:
    """Returns the script of a shell for the commands `known`."""
    import shtab  # only here: no other command needs it

    from ratrain.config.catalogue import catalogue
    from ratrain.config.find import ablations, ladders, scales

    words = Words(
        commands=tuple(dict.fromkeys(name.partition(" ")[0] for name in known)),
        variants=tuple(entry.id for entry in catalogue()),
        studies=tuple(file.stem for file in (*ablations(), *ladders())),
        scales=tuple(scales()),
    )
    parents = {name.rpartition(" ")[0] for name in known} - {""}
    made = shtab.complete(_whole(shell, known, parents), shell, preamble=preamble(shell, words, parents))
    return f"{made}\n{tail(shell, parents)}"


def _whole(shell: str, known: Mapping[str, Command], parents: Iterable[str]) -> argparse.ArgumentParser:
    """Returns one parser of everything: the options of training, and each command below it."""
    root = argparse.ArgumentParser(prog="ratrain", description="Train one variant, described by a manifest.")
    below = {"": root.add_subparsers()}
    _add(root, known["train"], parent=True)
    root.add_argument("--version", action="version", version="")
    for name in ("--ablate", "--ladder"):
        _mark(root.add_argument(name, metavar="FILE", help=known[name].run.__doc__), Completer.STUDIES)
    for name in sorted(known, key=lambda name: name.count(" ")):
        first, _, last = name.rpartition(" ")
        if name in ("--ablate", "--ladder") and shell != "bash":
            continue  # these take no option for a command
        about = (known[name].run.__doc__ or "").replace("%", "%%")
        parser = below[first].add_parser(last, help=about, description=about)
        if name in parents:
            below[name] = parser.add_subparsers()
        _add(parser, known[name], parent=name in parents)
    return root


def _add(parser: argparse.ArgumentParser, command: Command, *, parent: bool) -> None:
    """Adds the arguments of a command, each with its completer. The words of a `parent` are completed by `preamble`."""
    command.add_arguments(parser)
    for action in parser._actions:  # argparse has no public list of them
        if parent and not action.option_strings and not isinstance(action, argparse._SubParsersAction):
            action.help = argparse.SUPPRESS
        elif action.choices is None and (completer := completer_of(action)):
            _mark(action, completer)


def _mark(action: argparse.Action, completer: Completer) -> None:
    """Sets the attribute that shtab reads: the completer by shell."""
    vars(action)["complete"] = completer.by_shell
