"""Pictures within a page: pixels as data, grids of them, and heat laid over them."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxcls.report.contents import Look, Picture
from jaxcls.report.markup import Markup, group, tag

# Images of up to so many pixels a side are kept as they are, and their pixels seen.
SMALL = 48
# The side of an overlay: a heat of 7 x 7 is smooth on it.
OVERLAY = 128


def grid(pictures: Sequence[Picture], side: int) -> Markup:
    """Pictures with their captions, none larger than `side` pixels."""
    figures = [figure(each.pixels, each.caption, side) for each in pictures]
    return group(figures, "grid")


def looks(found: Sequence[Look], side: int) -> Markup:
    """Each image beside what the model looked at in it."""
    figures = []
    for each in found:
        pixels, text = each.picture
        shown = [figure(pixels, text, side)]
        for what, heat in each.heats:
            warm, large = overlay(pixels, heat), max(side, OVERLAY)
            shown.append(figure(warm, what, large, f"{what}, over {text}"))
        figures.append(group(shown, "row"))
    return group(figures, "looks")


def figure(pixels: np.ndarray, text: str, side: int, alt: str = "") -> Markup:
    """An image over its caption, whose lines are kept."""
    lines = (tag("span", line) for line in text.splitlines())
    alt = "; ".join((alt or text).splitlines())
    return tag("figure", image(pixels, alt, side), tag("figcaption", *lines))


def image(pixels: np.ndarray, alt: str, side: int) -> Markup:
    """pixels uint8 [H, W, C] as an element; of more than `side` they are made smaller."""
    height, width = pixels.shape[:2]
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    is_small = max(height, width) <= SMALL
    if max(height, width) > side:
        factor = side / max(height, width)
        picture = picture.resize(
            (max(1, round(width * factor)), max(1, round(height * factor))),
            Image.Resampling.BOX,
        )
    out = io.BytesIO()
    if is_small:
        picture.save(out, "PNG", optimize=True)
    else:
        picture.save(out, "JPEG", quality=82)
    kind = "png" if is_small else "jpeg"
    data = base64.b64encode(out.getvalue()).decode()
    return tag(
        "img",
        src=f"data:image/{kind};base64,{data}",
        alt=alt,
        width=picture.width,
        height=picture.height,
        class_="pixels" if is_small else None,
    )


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 [OVERLAY or more, ., 3]: grey pixels under a heat [h, w] of its own scale.

    Where the heat is 0 the image is as it was, and where it is largest it is yellow.
    """
    from matplotlib import colormaps

    height, width = pixels.shape[:2]
    factor = max(1, -(-OVERLAY // max(height, width)))
    size = width * factor, height * factor
    flat = pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels
    below = Image.fromarray(flat).convert("L").resize(size, Image.Resampling.NEAREST)
    scaled = np.asarray(heat, np.float32) / max(float(heat.max()), 1e-30)
    raised = Image.fromarray(scaled).resize(size, Image.Resampling.BICUBIC)
    warmth = np.asarray(raised).clip(0, 1)[..., None]
    colours = colormaps["inferno"](warmth[..., 0])[..., :3] * 255
    grey = np.asarray(below, np.float32)[..., None]
    mixed = (1 - 0.7 * warmth) * grey + 0.7 * warmth * colours
    return np.rint(mixed).astype(np.uint8)
