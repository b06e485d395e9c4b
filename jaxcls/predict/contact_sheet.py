"""Draws a contact sheet: one PNG of thumbnails in rows, each above its caption."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, PngImagePlugin

from jaxcls import atomic
from jaxcls.data import clean, files, pictures
from jaxcls.data.decode import Decode
from jaxcls.errors import InputError

SIDE = 96
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

    The image of an unreadable file is all white.
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


def write(
    file: pathlib.Path,
    rows: Sequence[Sequence[tuple[str, str]]],
    thumbnails: Mapping[str, np.ndarray],
) -> None:
    """Writes `file`, a PNG of rows of (path, caption of two lines); replaces an old file.

    thumbnails: {path: uint8 [SIDE, SIDE, 3]}. Raises `InputError` if it cannot be written.
    """
    columns = max(map(len, rows))
    images = np.ones((len(rows), columns, SIDE, SIDE, 3), np.float32)
    captions = [""] * (len(rows) * columns)
    for number, row in enumerate(rows):
        for column, (path, caption) in enumerate(row):
            images[number, column] = thumbnails[path] / np.float32(255)
            captions[number * columns + column] = caption
    picture = pictures.grid(images.reshape(-1, *images.shape[2:]), captions, columns)
    about = PngImagePlugin.PngInfo()
    about.add_text(*_MADE_BY)
    with atomic.writing(file, "wb") as out:
        Image.fromarray(picture).save(out, "PNG", pnginfo=about, optimize=True)
