"""A headless Chromium to look at pages with: what it complains of, what it asks the network for, what it lays out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

# the page looks at itself and tells the page around it: a window is not as narrow as a phone, a frame is
_PROBE = """<script>addEventListener("load", () => {
  const all = selector => [...document.querySelectorAll(selector)].filter(e => e.getClientRects().length);
  const scale = at => Math.hypot(at.a, at.b);
  const open = all("svg text").filter(e => !e.closest("details:not([open])"));
  parent.postMessage(JSON.stringify({
    width: innerWidth, scroll: document.documentElement.scrollWidth,
    wide: all("body *").filter(e => e.getBoundingClientRect().right > innerWidth + 1
      && !e.closest(".box, .wide, pre, svg, details")).map(e => e.tagName + "." + e.className).slice(0, 5),
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    page: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    letters: Math.min(...open.map(e => parseFloat(getComputedStyle(e).fontSize) * scale(e.getScreenCTM())))
  }), "*");
})</script>"""
_FRAME = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 0 }} iframe {{ border: 0 }}</style><script>
addEventListener("message", told => document.documentElement.dataset.told = told.data)</script>
<iframe src="{src}" width="{width}" height="{height}"></iframe>"""


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass(frozen=True)
class Browser:
    """Chromium at `program`, with its profile and what it writes in `folder`."""

    program: str
    folder: Path

    def screenshot(self, page: Path, to: Path, *, width: int = 1200, height: int = 1000, dark: bool = False) -> Path:
        frame = self._framed(page, width, height)
        self._run(frame, f"--screenshot={to}", f"--window-size={width},{height}", *_scheme(dark))
        return to

    def layout(self, page: Path, *, width: int, dark: bool = False) -> dict:
        """What the page says of itself in a frame of this width: its widths, what sticks out, colours, and the size
        of the smallest letters in figures."""
        probed = self.folder / "probed.html"
        probed.write_text(page.read_text().replace("</body>", f"{_PROBE}</body>"))
        dom = self._run(self._framed(probed, width, 844), "--dump-dom", *_scheme(dark)).stdout
        found = re.search(r'data-told="([^"]*)"', dom)
        assert found, dom[:500]
        return json.loads(found[1].replace("&quot;", '"'))

    def complaints(self, page: Path) -> list[str]:
        """What the page writes to the console."""
        told = self._run(page, "--dump-dom", "--enable-logging=stderr", "--v=0").stderr
        return [line for line in told.splitlines() if "CONSOLE" in line]

    def hosts(self, page: Path) -> set[str]:
        """Where the network was asked for anything while the page loaded, by the browser itself too."""
        log = self.folder / "net.json"
        self._run(page, "--dump-dom", f"--log-net-log={log}")
        told = json.loads(log.read_text())
        started = told["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
        events = [event.get("params", {}) for event in told["events"] if event["type"] == started]
        return {urlsplit(params["url"]).netloc for params in events if "url" in params}

    def _framed(self, page: Path, width: int, height: int) -> Path:
        frame = self.folder / "frame.html"
        frame.write_text(_FRAME.format(src=page.resolve().as_uri(), width=width, height=height))
        return frame

    def _run(self, page: Path, *words: str) -> subprocess.CompletedProcess[str]:
        quiet = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--disable-sync",
                 f"--user-data-dir={self.folder / 'profile'}")  # fmt: skip
        command = [self.program, *quiet, *words, page.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def _scheme(dark: bool) -> list[str]:
    return [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
