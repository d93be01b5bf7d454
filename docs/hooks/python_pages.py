"""The page of the reference that holds the public Python interface, from signatures and docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from ratrain import api


def interface() -> str:
    """Every name of `ratrain.api.__all__`: its signature, docstring and, of a class, its public methods."""
    intro = "# Python\n\nEvery public name of `ratrain`. Errors are `ratrain.errors.RatrainError`s.\n"
    return intro + "".join(text for name in api.__all__ for text in _entry(name, getattr(api, name)))


def _entry(name: str, thing: Any) -> Iterator[str]:
    """The heading, the signature and the docstring of a name; the docstring stays preformatted, as its author laid it
    out."""
    if not inspect.isclass(thing):
        yield f"\n## `{name}`\n\n```text\n{_signature(f'ratrain.{name}', thing)}\n```\n\n{_quoted(thing)}"
        return
    yield f"\n## `{name}`\n\n```text\nclass ratrain.{name}\n```\n\n{_quoted(thing)}"
    for member, value in vars(thing).items():
        if member.startswith("_") or not value.__doc__:
            continue
        if isinstance(value, property):
            yield f"\n### `{name}.{member}`\n\n{_quoted(value)}"
        elif inspect.isfunction(value):
            yield f"\n### `{name}.{member}`\n\n```text\n{_signature(member, value)}\n```\n\n{_quoted(value)}"


def _signature(name: str, function: Callable[..., Any]) -> str:
    """The call of a function, one parameter a line if it has many."""
    signature = inspect.signature(function)
    line = f"{name}{signature}".replace("'", "")
    if len(line) <= 100:
        return line
    parameters, star = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parameters.append("    *,")
            star = True
        parameters.append(f"    {parameter},".replace("'", ""))
    returned = f" -> {signature.return_annotation}".replace("'", "")
    return "\n".join([f"{name}(", *parameters, f"){returned}"])


def _quoted(thing: Any) -> str:
    """The docstring as a block of text."""
    return f"```text\n{inspect.getdoc(thing) or ''}\n```\n"
