"""Draws figures as SVG with the colours and the font of the page; the same figure gives the same bytes."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from ratrain.errors import UnavailableError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WORDS = ("better", "worse", "equivalent", "inconclusive")
SERIES = tuple(f"s{number}" for number in range(1, 9))
# placeholder colours, used for nothing else: matplotlib draws with them, and the SVG gets CSS variables instead
PAINT = {
    name: f"#0101{at:02x}"
    for at, name in enumerate(("ink", "quiet", "line", "band", "base", *_WORDS, *SERIES), start=1)
}
_WIDTH = 4.6  # inches: text is readable on a phone at this width


def drawn(
    name: str, words: str, height: float, draw: Callable[[Axes], None], *, width: float = _WIDTH, size: float = 9.5
) -> Markup:
    """Returns the SVG of a figure drawn by `draw`.

    `words` is the description for screen readers; `name` makes the ids differ from other figures'. Raises
    UnavailableError without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnavailableError("figures need matplotlib; pip install 'ratrain[plots]'") from error
    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False, "font.size": size,
        "font.family": "DejaVu Sans", "axes.unicode_minus": True,
    }  # fmt: skip
    out = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the page's font has glyphs that matplotlib's lacks
        drawing = Figure(figsize=(width, height), layout="constrained")
        axes = drawing.subplots()
        _plain(axes)
        draw(axes)
        drawing.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return _inline(out.getvalue(), words)


def _plain(axes: Axes) -> None:
    axes.tick_params(color=PAINT["quiet"], labelcolor=PAINT["quiet"], width=0.6, length=3)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(PAINT["quiet"])
    for side, spine in axes.spines.items():
        spine.set_color(PAINT["quiet"])
        spine.set_linewidth(0.6)
        spine.set_visible(side in ("left", "bottom"))


def _inline(svg: str, words: str) -> Markup:
    """Rewrites an SVG as part of a page: the page's colours and font, no fixed size, only ids that it refers to."""
    box = re.search(r'viewBox="([^"]+)"', svg)
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.S)
    body = body[body.index(">") + 1 :]
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href", "href")
    body = re.sub(r"font-family: [^;\"]*; ?", "", body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r' (?:d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), body)
    for name, color in PAINT.items():
        body = body.replace(color, f"var(--{name})")
    body = re.sub(r">\s+<", "><", body.replace(" \n", " ").replace("\n", " "))
    head = f'<svg role="img" aria-label="{escape(words)}" viewBox="{box[1] if box else "0 0 1 1"}"'
    return Markup(f'{head} style="stroke-linejoin:round;stroke-linecap:butt">{body.strip()}')
