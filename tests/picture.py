"""The README's pictures: ``python -m tests.picture report|study runs/report.html``.

Parts of a page as a phone shows it, side by side, in docs/report.png or docs/study.png.
"""

import io
import pathlib
import sys
import tempfile

from PIL import Image

from tests import browser

WIDTH, HEIGHT, GAP = 400, 960, 6
# {picture: the heading that each part begins with, and whether it is shown dark}.
PARTS = {
    "report": (("Report", False), ("Confusions", False), ("Where it looks", True)),
    "study": (("Runs", False), ("Cells", False)),
}
FIND = (
    "[...document.querySelectorAll('h1, h2, h3')].find(h => h.textContent.startsWith({!r}))"
)


def main(picture: str, report: str) -> None:
    """Write docs/`picture`.png of a report's file."""
    parts = PARTS[picture]
    out = Image.new("RGB", (len(parts) * (WIDTH + GAP) - GAP, HEIGHT), "#8b949e")
    file = pathlib.Path(report).resolve()
    with tempfile.TemporaryDirectory() as folder, browser.opened(folder) as page:
        for number, (heading, dark) in enumerate(parts):
            page.open(file, WIDTH, HEIGHT, dark)
            page.evaluate("document.documentElement.style.scrollbarWidth = 'none'")
            top = page.evaluate(
                f"Math.round({FIND.format(heading)}.getBoundingClientRect().y)"
            )
            shot = pathlib.Path(folder) / "shot.png"
            page.screenshot(shot)
            with Image.open(io.BytesIO(shot.read_bytes())) as whole:
                part = whole.crop((0, top - 12, WIDTH, top - 12 + HEIGHT)).convert("RGB")
            out.paste(part, (number * (WIDTH + GAP), 0))
    docs = pathlib.Path(__file__).parent.parent / "docs"
    docs.mkdir(exist_ok=True)
    few = out.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(docs / f"{picture}.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
