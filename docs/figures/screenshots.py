"""Takes the pictures of docs/gallery.md, with Chromium: python -m docs.figures.screenshots

Trains V0 and V9 at the scale `study`, a minute on one core, in a folder that is thrown away, and looks at the pages of
both, at that of the series in docs/series, and at that of a ladder in docs/ideas. Pictures have 64 colours, so that
each stays below 150 KB.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from PIL import Image

import ratrain
from ratrain.cli import main
from tests.report.browser import Browser, find_browser

HERE = Path(__file__).resolve().parent
PAGES = {"run.png": 1250, "comparison.png": 1000, "series.png": 1250, "ladder.png": 1800}  # heights in pixels


def take(browser: Browser, page: Path, name: str) -> None:
    """Writes the upper part of a page to the file `name` of this folder."""
    picture = browser.screenshot(page, browser.folder / name, width=1100, height=PAGES[name])
    Image.open(picture).convert("RGB").quantize(64).save(HERE / name, optimize=True)


def screenshots(folder: Path) -> None:
    program = find_browser() or sys.exit("no Chromium on the path; on Debian: apt-get install chromium")
    os.chdir(folder)  # pages name the folders of their runs as the commands do
    for name in ("v0", "v9"):
        assert main([name, "--scale", "study"]) == 0
    runs = [str(ratrain.read_run(name).path) for name in ("v0", "v9")]
    assert main(["report", *runs]) == main(["report", runs[1]]) == 0
    browser = Browser(program, folder)
    take(browser, folder / runs[1] / "report.html", "run.png")
    take(browser, folder / "runs" / "comparison.html", "comparison.png")
    take(browser, HERE.parent / "series" / "report.html", "series.png")
    take(browser, HERE.parent / "ideas" / "ladder.html", "ladder.png")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        screenshots(Path(scratch))
