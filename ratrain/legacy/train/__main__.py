"""`python -m ratrain.legacy.train ...` translates an old command line, prints the new command and runs it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ratrain.atomic import write_file
from ratrain.errors import ManifestError, RatrainError
from ratrain.legacy.readers.command_line import Line, read_command_line


def main(argv: Sequence[str]) -> NoReturn:
    """Replaces this process by the new command. Exits with the error's code if the command line is refused."""
    try:
        line = read_command_line(argv, os.environ)
        file = _written(line)
    except RatrainError as error:
        print(error if isinstance(error, ManifestError) else f"ratrain: {error}", file=sys.stderr)
        sys.exit(error.exit)
    words = [*(["--ablate"] if line.found.is_study else []), str(file), *line.words]
    for note in line.found.notices:
        print(f"note: {note}", file=sys.stderr)
    print(
        f"this is a command line of the old trainers; the command is now\n\n  ratrain {shlex.join(words)}\n",
        file=sys.stderr,
    )
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "ratrain", *words])


def _written(line: Line) -> Path:
    words = line.words
    out = Path(words[words.index("--out") + 1]) if "--out" in words else Path("runs")
    file = out / "legacy" / f"{line.found.name}.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, [line.found.text.encode()])
    return file


if __name__ == "__main__":
    main(sys.argv[1:])
