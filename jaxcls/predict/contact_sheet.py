"""Draws a contact sheet: one PNG of thumbnails in rows, each above its caption."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, PngImagePlugin

from jaxcls import atomic
from jaxcls.data import batches, clean, files, pictures
from jaxcls.data.decode import Decode
from jaxcls.errors import InputError, shown
from jaxcls.predict.retrieval import Neighbours

# The limits of a sheet, queries and neighbours of each, and the side of a thumbnail.
ROWS, COLUMNS, SIDE = 20, 10, 96
_MADE_BY = "Software", "jaxcls"


def check(file: pathlib.Path) -> None:
    """Raises `InputError` if `file` exists and is no contact sheet of jaxcls."""
    if not file.exists():
        return
    key, value = _MADE_BY
    try:
        with Image.open(file) as old:
            is_ours = old.info.get(key) == value
    except (OSError, ValueError):
        is_ours = False
    if not is_ours:
        raise InputError(
            f"--sheet={file} is a file already, and no sheet; try --sheet=search.png"
        )


def thumbnail(path: str) -> np.ndarray:
    """Returns the image of a file, uint8 [SIDE, SIDE, 3], centred on white.

    The image of an unreadable file, as of "", is all white.
    """
    square = Image.new("RGB", (SIDE, SIDE), "white")
    try:
        picture = Image.fromarray(clean.pixels(files.read(path), Decode(3)))
    except ValueError:  # The file may have changed since it was read.
        return np.asarray(square)
    scale = SIDE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    small = picture.resize((width, height), how)
    square.paste(small, ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.asarray(square)


def draw(
    file: pathlib.Path, found: Sequence[Neighbours], folder: str, threads: int = 0
) -> None:
    """Draws a row for each query, with its neighbours and similarities; replaces `file`.

    folder: of the gallery. Raises `InputError` if the file cannot be written.
    """
    width = 1 + min(COLUMNS, max(len(near) for _, near in found))
    cells: list[tuple[str, str]] = []
    for query, near in found:
        row = [(query, f"query\n{shown(os.path.basename(query))}")]
        for path, similarity in near[:COLUMNS]:
            row.append((path, f"{similarity:.4f}\n{shown(os.path.relpath(path, folder))}"))
        cells += row + [("", "")] * (width - len(row))
    paths = list(dict.fromkeys(path for path, _ in cells))
    small = dict(zip(paths, batches.in_order(thumbnail, paths, threads), strict=True))
    images = np.stack([small[path] for path, _ in cells]) / np.float32(255)
    picture = pictures.grid(images, [caption for _, caption in cells], width)
    about = PngImagePlugin.PngInfo()
    about.add_text(*_MADE_BY)
    with atomic.writing(file, "wb") as out:
        Image.fromarray(picture).save(out, "PNG", pnginfo=about, optimize=True)
