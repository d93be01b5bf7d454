"""Entry points: objects outside the core, found by group and name and imported when they are used.

Group               | an entry point loads                                                          | called by
ratrain.patches     | a class marked `@register(name)`                                              | registry.py
ratrain.commands    | a Command of the command line, called `name`                                  | cli/__init__.py
ratrain.manifests   | a function from argv to argv that replaces a foreign file by a manifest        | cli/__init__.py
ratrain.reports     | a function of names and a folder (as_json=True: JSON); whether it reports these    | cli/report.py

Installed packages offer theirs in their metadata. Those of `ratrain.legacy` are listed here, so that a checkout which
was never installed has them too; no other module of the core names that package.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

_LEGACY = {
    "ratrain.patches": {
        "lens": "ratrain.legacy.lens:Lens",
        "ra_mla": "ratrain.legacy.ra_mla:RAMLA",
        "rwr": "ratrain.legacy.rwr:RandomWalk",
    },
    "ratrain.commands": {"convert": "ratrain.legacy.commands.convert:CONVERT"},
    "ratrain.manifests": {"defconfig": "ratrain.legacy.commands.defconfig:with_manifests"},
    "ratrain.reports": {"metrics": "ratrain.legacy.commands.metrics:report"},
}


@cache
def offered(group: str) -> tuple[EntryPoint, ...]:
    """Returns the entry points in `group`, those of ratrain first; cached, because the search is slow."""
    own = [EntryPoint(name, value, group) for name, value in _LEGACY.get(group, {}).items()]
    return (*own, *entry_points(group=group))
