"""The page of the reference that holds the help text of every command."""

from __future__ import annotations

import os
from unittest.mock import patch

from ratrain.cli import commands as names
from ratrain.cli import parser_of


def commands() -> str:
    """The output of `--help` of every command, at a fixed width."""
    parts = ["# Command line\n\nThe help text of every command. The first lists all of them, and the exit codes.\n"]
    with patch.dict(os.environ, {"COLUMNS": "110", "NO_COLOR": "1"}):
        for name in names():
            title = "ratrain MANIFEST" if name == "train" else f"ratrain {name}"
            parts.append(f"\n## `{title}`\n\n```text\n{parser_of(name).format_help()}```\n")
    return "".join(parts)
