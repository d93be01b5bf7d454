"""Completers of arguments in three shells: the words they offer, and the functions of the script that offer them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from string import Template


@dataclass(frozen=True)
class Words:
    """The words that a script holds: commands (the first words), ids of variants, names of studies and of scales."""

    commands: tuple[str, ...]
    variants: tuple[str, ...]
    studies: tuple[str, ...]
    scales: tuple[str, ...]


class Completer(Enum):
    """A completer, by the name of its function. `_file_` and `_dir_` in it tell shtab that words may be paths."""

    MANIFESTS = "_ratrain_file_manifests"
    STUDIES = "_ratrain_file_studies"
    RUNS = "_ratrain_dir_runs"
    SCALES = "_ratrain_file_scales"
    DEVICES = "_ratrain_devices"
    FILES = "_ratrain_file_any"
    FOLDERS = "_ratrain_dir_any"

    @property
    def by_shell(self) -> dict[str, str]:
        return {"bash": self.value, "zsh": self.value, "fish": f"({self.value})"}


_BY_NAME = {
    **dict.fromkeys(("manifest", "manifests", "a", "b", "ideas", "base"), Completer.MANIFESTS),
    **dict.fromkeys(("run", "glob"), Completer.RUNS),
    **dict.fromkeys(("file", "after"), Completer.STUDIES),
    **dict.fromkeys(("inputs", "target", "source", "tasks", "init_from", "optimizer"), Completer.FILES),
    "scale": Completer.SCALES,
    "device": Completer.DEVICES,
}
_BY_METAVAR = {"DIR": Completer.FOLDERS, "PATH": Completer.FILES, "OUT": Completer.FILES, "FILE": Completer.FILES}


def completer_of(action: argparse.Action) -> Completer | None:
    """Returns the completer of an argument, by its name and else by its metavar; None if any text may follow."""
    takes_word = action.nargs != 0 and not (action.dest == "run" and action.metavar == "K")
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    return (_BY_NAME.get(action.dest) or _BY_METAVAR.get(metavar)) if takes_word else None


def preamble(shell: str, words: Words, parents: Iterable[str]) -> str:
    """Returns the functions of the script. `parents` are commands whose first word may also be a command."""
    text = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}[shell]
    lists = {name: " ".join(value) for name, value in vars(words).items()}
    made = Template(text).substitute(lists)
    if shell == "bash":
        made += "".join(f"{variable(place)}_pos_0_COMPGEN={function}\n" for place, function in _first_words(parents))
    if shell == "zsh":
        made += "".join(_beside(f"{variable(place)}_commands", function) for place, function in _first_words(parents))
    return made


def tail(shell: str, parents: Iterable[str]) -> str:
    """Returns the end of the script, after the code of shtab."""
    if shell != "fish":
        return ""
    lines = []
    for place, function in _first_words(parents):
        condition = f"_shtab_ratrain_using {place}".strip() + "; and test $_shtab_ratrain_npos -eq 0"
        lines.append(f"complete -c ratrain -n '{condition}' -ka '({function})'\n")
    return "".join(lines)


def _first_words(parents: Iterable[str]) -> list[tuple[str, str]]:
    """Returns the commands with commands below them, each with the completer of its own first word."""
    own = {"runs": Completer.RUNS}
    return [(name, own.get(name, Completer.MANIFESTS).value) for name in ("", *sorted(parents))]


def variable(command: str) -> str:
    """Returns the prefix of the names that shtab gives to the parts of a command."""
    return "_".join(["_shtab_ratrain", *command.split()])


def _beside(function: str, other: str) -> str:
    """Returns the lines of zsh that make `function` offer the words of `other` as well."""
    return f"functions -c {function} _ratrain{function}\n{function}() {{\n  _ratrain{function}\n  {other}\n}}\n"


_BASH = r"""
COMP_WORDBREAKS=$${COMP_WORDBREAKS//@/}  # else @last is two words, of which the second is completed as a host
_ratrain_file_any() { compgen -f -- "$$1"; }
_ratrain_dir_any() { compgen -d -- "$$1"; }
_ratrain_devices() { compgen -W "auto cpu cuda" -- "$$1"; }
_ratrain_toml() { compgen -f -X '!*.toml' -- "$$1"; compgen -d -- "$$1"; }
_ratrain_file_scales() { compgen -W "$scales" -- "$$1"; _ratrain_toml "$$1"; }
_ratrain_file_manifests() { compgen -W "$variants" -- "$$1"; _ratrain_toml "$$1"; }
_ratrain_file_studies() { compgen -W "$studies" -- "$$1"; compgen -f -- "$$1"; }
_ratrain_dir_runs() {
  local found
  for found in runs/*/s*/ runs/studies/*/; do
    found=$${found#runs/}
    found=$${found#studies/}
    found=$${found%/}
    [[ $$found != *\** && $$found == "$$1"* ]] && echo "$$found"
  done
  compgen -W "@last" -- "$$1"
  compgen -d -- "$$1"
}
"""

_ZSH = r"""
_ratrain_file_any() { _files }
_ratrain_dir_any() { _files -/ }
_ratrain_devices() { compadd auto cpu cuda }
_ratrain_file_scales() { compadd $scales; _files -g '*.toml' }
_ratrain_file_manifests() { compadd $variants; _files -g '*.toml' }
_ratrain_file_studies() { compadd $studies; _files }
_ratrain_dir_runs() {
  local -a found=(runs/*/s*(N/) runs/studies/*(N/))
  found=($${$${found#runs/}#studies/})
  compadd -a found
  compadd @last
  _files -/
}
# shtab takes every word after the first for one of a command; after a manifest they are options of training
functions -c _shtab_ratrain _ratrain_by_command
_shtab_ratrain() {
  local -a known=($commands)
  if (( CURRENT > 2 )) && [[ $$words[2] != -* && -z $${known[(r)$$words[2]]} ]]; then
    _arguments -s $${_shtab_ratrain_options:#*(_commands|->ratrain)} ':manifest:_ratrain_file_manifests'
  else
    _ratrain_by_command
  fi
}
"""

_FISH = r"""
function _ratrain_file_any
  __fish_complete_path (commandline -ct)
end
function _ratrain_dir_any
  __fish_complete_directories (commandline -ct)
end
function _ratrain_devices
  string split ' ' 'auto cpu cuda'
end
function _ratrain_file_scales
  string split ' ' '$scales'
  __fish_complete_suffix .toml
end
function _ratrain_file_manifests
  string split ' ' '$variants'
  __fish_complete_suffix .toml
end
function _ratrain_file_studies
  string split ' ' '$studies'
  __fish_complete_path (commandline -ct)
end
function _ratrain_dir_runs
  for found in runs/*/s* runs/studies/*
    string replace -r '^runs/(studies/)?' '' $$found
  end
  echo @last
  __fish_complete_directories (commandline -ct)
end
"""
