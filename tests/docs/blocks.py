"""The fenced blocks of the README and of docs/, and the command lines in them.

The language of a block decides its test:

toml      a manifest or a study is resolved, and a manifest's model built
python    executed; a file of patches/ is written and used by the manifests of its page
yaml      a downstream task, scored
console   command lines; those of ratrain run in one folder for each page, made tiny (`tests/docs/lines.py`)
text      output or a layout: not tested

A block whose first line is a comment with a file's name (`# patches/temperature.py`) is written to that file before the
page's commands run. `<!-- not run: REASON -->` above a block leaves its commands to the parser of the command line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("toml", "python", "yaml", "console", "text")
_BLOCK = re.compile(r"(?:^<!-- not run: ([^>]+) -->\n+)?^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_NAME = re.compile(r"# ((?:patches/)?[\w-]+\.(?:toml|py))\b")
_PROGRAMS = (
    "ratrain", "make", "python", "torchrun", "pip", "bash", "source", "git", "mkdocs", "tensorboard", "pytest",
    "docker", "eval",
)  # fmt: skip
_LINE = re.compile(rf"(?:\$ )?((?:[A-Z_]+=\S+ )*(?:{'|'.join(_PROGRAMS)})\b.*)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the reason if its commands are not run."""

    page: Path
    number: int
    language: str
    text: str
    not_run: str | None

    @property
    def file(self) -> str | None:
        """The file that the block is, if its first line names one."""
        found = _NAME.match(self.text)
        return found[1] if found else None

    @property
    def lines(self) -> list[str]:
        """Its command lines, without descriptions: those begin after two spaces, or at a number sign."""
        found = [_LINE.match(line) for line in self.text.splitlines()]
        return [re.split(r"\s{2,}|\s+# ", line[1])[0].strip() for line in found if line]

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.number}"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    found = _BLOCK.findall(page.read_text())
    return [Block(page, number, language, text, why or None) for number, (why, language, text) in enumerate(found, 1)]


def blocks(language: str) -> list[Block]:
    """All blocks in a language, of all pages."""
    return [block for page in PAGES for block in blocks_of(page) if block.language == language]


def spans(page: Path) -> list[str]:
    """The commands of ratrain that stand in the text as code, outside of blocks."""
    text = re.sub(_BLOCK, "", page.read_text())
    return [" ".join(span.split()) for span in re.findall(r"`(ratrain [^`]+)`", text)]
