"""The options of the reference's trainers; every reading of a file and every old command line yields these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import tomli

from ratrain.errors import Fault, ManifestError

Trainer = Literal["train.py", "train_ra_mla.py"]
_COLUMN = {"train.py": "train", "train_ra_mla.py": "ra_mla"}
_WORDS = {"true": True, "y": True, "1": True, "false": False, "n": False, "0": False, "": False}


@dataclass(frozen=True)
class Option:
    """One line of `options.toml`. `defaults`: by trainer, of train, ra_mla, planned, setting."""

    name: str
    type: Literal["int", "float", "text", "flag"]
    defaults: Mapping[str, Any]
    choices: tuple[str, ...] = ()
    off: bool = False
    idle: str = ""

    @property
    def is_setting(self) -> bool:
        """Whether no command line has this option."""
        return "setting" in self.defaults

    def read(self, text: str) -> Any:
        """Parses `text`. Raises ValueError."""
        if self.type == "flag":
            if text not in _WORDS:
                raise ValueError(f"expected y or n, got {text!r}")
            return _WORDS[text]
        if self.choices and text not in self.choices:
            raise ValueError(f"{text!r} is not one of {', '.join(map(repr, self.choices))}")
        try:
            value = {"int": int, "float": float, "text": str}[self.type](text)
        except ValueError:
            raise ValueError(f"expected a {'whole ' * (self.type == 'int')}number, got {text!r}") from None
        if self.type != "text" and not 0 <= value < 2**63:
            raise ValueError(f"must be from 0 up, got {text}")
        return value


@dataclass(frozen=True)
class Said:
    """A value, its source (for a comment), its position (for a fault), and whether it was given."""

    value: Any
    by: str
    where: str = ""
    given: bool = True


@cache
def options() -> Mapping[str, Option]:
    """Returns all options, by name without leading dashes."""
    table = tomli.loads(Path(__file__).with_name("options.toml").read_text())
    return {name: _option(name, dict(said)) for name, said in table.items()}


def _option(name: str, said: dict[str, Any]) -> Option:
    keys = {"type": said.pop("type"), "off": said.pop("off", False), "idle": said.pop("idle", "")}
    return Option(name, choices=tuple(said.pop("choices", ())), defaults=said, **keys)


class Asked(Mapping[str, Said]):
    """The options of a run; an option that is not given has its trainer's default."""

    def __init__(self, trainer: Trainer, given: Mapping[str, Said]):
        self.trainer: Trainer = trainer
        self._given = dict(given)

    def __getitem__(self, name: str) -> Said:
        if name in self._given:
            return self._given[name]
        defaults = options()[name].defaults
        for who in (_COLUMN[self.trainer], *defaults):
            if who in defaults:
                said = (
                    f"the default of {self.trainer}" if who == _COLUMN[self.trainer] else "hard-wired in the reference"
                )
                return Said(None if defaults[who] == "" else defaults[who], said, given=False)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(options())

    def __len__(self) -> int:
        return len(options())

    def value(self, name: str) -> Any:
        return self[name].value

    def given(self, name: str) -> bool:
        return self[name].given

    def fault(self, name: str, message: str) -> ManifestError:
        said = self[name]
        return ManifestError([Fault(said.where, said.by if said.given else f"--{name}", message)])

    def also(self, given: Mapping[str, Said]) -> Asked:
        """Returns the same options with more given ones."""
        return Asked(self.trainer, {**self._given, **given})


def read_said(name: str, text: str, *, by: str, where: str) -> Said:
    """Parses `text` as the value of an option. Raises ManifestError."""
    try:
        return Said(options()[name].read(text), by, where)
    except ValueError as error:
        raise ManifestError([Fault(where, by, str(error))]) from None
