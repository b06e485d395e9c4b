"""Matplotlib figures as inline SVG, in the colours of the page, light or dark."""

import io
import re
from collections.abc import Callable
from typing import Any

from jaxcls.report.markup import COLOURS, Markup, escape, tag

# Placeholder colours of a figure; the SVG gets CSS colours of the page in their place.
INK, GRID, PAPER = "#010101", "#020202", "#040404"
_FIXED = {INK: "currentColor", GRID: "var(--line)", PAPER: "var(--paper)"}
# Typed Any because the type of rcParams differs between versions of matplotlib.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxcls",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.transparent": True,
    "path.simplify": True,
}


def colour(run: int) -> str:
    """Returns the placeholder colour of run number `run`, from 0."""
    return f"#0300{run % COLOURS + 1:02x}"


def chart(
    draw: Callable[[Any], None], id_: str, title: str, about: str, size: tuple[float, float]
) -> Markup:
    """Returns the figure that `draw(figure)` draws, as SVG with its title.

    id_: unique in the page. about: a text alternative for screen readers. size: (width,
    height) in inches.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        out = io.StringIO()
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=none)
    svg = _inline(out.getvalue(), id_, f"{title}: {about}")
    return tag("figure", tag("figcaption", title), svg, class_="chart")


def _inline(text: str, prefix: str, label: str) -> Markup:
    """Returns an SVG file as an HTML element; every id gets `prefix`."""
    svg = text[text.index("<svg") :]
    # Matplotlib's <style> would apply to the whole page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    for placeholder, real in _FIXED.items():
        svg = svg.replace(placeholder, real)
    svg = re.sub(r"#0300([0-9a-f]{2})", lambda found: f"var(--run{int(found[1], 16)})", svg)
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box
    label = escape(label)
    return Markup(f'<svg {box[0]} role="img" aria-label="{label}">{rest.strip()}')
