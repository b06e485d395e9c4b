"""Draws pictures for TensorBoard and the report: arrays -> uint8 [H, W, 3].

Pillow draws them, not Matplotlib. Matplotlib takes a third of a second for a figure with a
label in every cell, and a run may be evaluated every few seconds.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_FONT_SIZE, _LINE = 12, 15
# The range of an image's width in the grid, in pixels, and the images in a row.
_SIDES, _COLUMNS = (64, 128), 8
# A confusion matrix with more classes has no counts, or no names.
_COUNTS, _NAMES = 20, 50


def grid(
    images: np.ndarray, captions: Sequence[str], columns: int = _COLUMNS
) -> np.ndarray:
    """Draws images [n, H, W, C], float in 0..1 with C of 1 or 3, each above its caption.

    A caption has at most two lines.
    """
    height, width = images.shape[1:3]
    low, high = _SIDES
    scale = min(max(1.0, low / width), high / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    cell = max(size[0], low) + 4, size[1] + 2 * _LINE + 4
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    picture = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(10)
    for i, (image, text) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(i, columns)
        pixels = np.broadcast_to((image * 255).round().astype(np.uint8), (height, width, 3))
        left, top = column * cell[0], row * cell[1]
        picture.paste(Image.fromarray(pixels).resize(size, how), (left, top))
        lines = (_fitted(line, cell[0] - 4, font) for line in text.splitlines()[:2])
        draw.text((left, top + size[1] + 1), "\n".join(lines), "black", font, spacing=1)
    return np.asarray(picture)


def confusion(matrix: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Draws counts [K, K], one row per true class; the colour is the share of the row.

    Draws the counts of at most 20 classes, and the names of at most 50.
    """
    import matplotlib  # Import it late: it takes a twentieth of import time.

    count = len(matrix)
    side = 36 if count <= _COUNTS else max(8, 720 // count)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    colours = matplotlib.colormaps["Blues"](share)[..., :3]
    cells = Image.fromarray((colours * 255).round().astype(np.uint8))
    cells = cells.resize((count * side, count * side), Image.Resampling.NEAREST)
    draw, font = ImageDraw.Draw(cells), ImageFont.load_default(_FONT_SIZE)
    for row, column in np.argwhere(matrix).tolist() if count <= _COUNTS else ():
        at, text = ((column + 0.5) * side, (row + 0.5) * side), str(matrix[row, column])
        draw.text(at, text, "white" if share[row, column] > 0.5 else "black", font, "mm")
    names = class_names if count <= _NAMES else ()
    margin = 110 if names else 20
    picture = Image.new("RGB", (margin + cells.width, margin + cells.height), "white")
    picture.paste(cells, (margin, margin))
    size = margin, cells.height
    picture.paste(_names(names, size, side, "rm"), (0, margin))
    turned = _names(names, size, side, "lm").transpose(Image.Transpose.ROTATE_90)
    picture.paste(turned, (margin, 0))
    axes = "rows: true,\ncolumns:\npredicted" if names else "rows: true, columns: predicted"
    ImageDraw.Draw(picture).text((4, 4), axes, "gray", font)
    return np.asarray(picture)


def _names(
    names: Sequence[str], size: tuple[int, int], side: int, anchor: str
) -> Image.Image:
    """Draws a strip of `size` with a name every `side` pixels; anchor: "lm" or "rm"."""
    strip = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(min(_FONT_SIZE, side))
    x = 4 if anchor == "lm" else size[0] - 4
    for i, name in enumerate(names):
        text = _fitted(name, size[0] - 8, font)
        draw.text((x, (i + 0.5) * side), text, "black", font, anchor=anchor)
    return strip


def _fitted(
    text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> str:
    """Returns `text` on one line, cut to `width` pixels."""
    line = " ".join(text.split())
    for length in range(len(line), 1, -1):
        cut = textwrap.shorten(line, length, placeholder="…")
        cut = cut if cut != "…" else line[: length - 1] + "…"
        if font.getlength(cut) <= width:
            return cut
    return line[:1]
