"""Counts the words "what" and "where" per 1000 words of docstrings, comments and pages, by folder.

    python tests/language.py [FOLDER ...]

Plain technical English names the thing instead of pointing at it ("the loss", not "what it lost"). The two words are
counted wherever they stand, questions included.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("what", "where")


def prose_of(file: Path) -> str:
    """Docstrings and comments of a Python file; the text of any other, without its code blocks."""
    text = file.read_text()
    if file.suffix != ".py":
        return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join([*docs, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


def count(files: Iterator[Path]) -> Counter[str]:
    """Words in all, and those of WORDS."""
    found: Counter[str] = Counter()
    for file in files:
        words = [word.lower() for word in re.findall(r"[A-Za-z']+", prose_of(file))]
        found["words"] += len(words)
        found.update(word for word in words if word in WORDS)
    return found


def folders() -> dict[str, list[Path]]:
    """Files by room: each folder of the package, bench, and the pages."""
    rooms: dict[str, list[Path]] = {}
    for file in sorted([*(ROOT / "ratrain").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]):
        parts = file.relative_to(ROOT).parts
        rooms.setdefault("/".join(parts[: min(2, len(parts) - 1)]), []).append(file)
    return rooms | {"docs": sorted((ROOT / "docs").glob("*.md")), "README": [ROOT / "README.md"]}


def main() -> None:
    rooms = {name: files for name, files in folders().items() if not sys.argv[1:] or name in sys.argv[1:]}
    total: Counter[str] = Counter()
    print(f"{'':24} {'words':>8} {'what':>6} {'where':>6}   per 1000 words")
    for name, found in {name: count(iter(files)) for name, files in rooms.items()}.items():
        print(f"{name:24} {found['words']:8,} {rate(found, 'what'):6.1f} {rate(found, 'where'):6.1f}")
        total += found
    print(f"{'all':24} {total['words']:8,} {rate(total, 'what'):6.1f} {rate(total, 'where'):6.1f}")


def rate(found: Counter[str], word: str) -> float:
    return 1000 * found[word] / max(1, found["words"])


if __name__ == "__main__":
    main()
