"""Images in a page: inline data, grids, and overlays of saliency maps."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxcls.report.contents import Look, Picture
from jaxcls.report.markup import Markup, group, tag

# Images up to this side stay lossless, and the page shows their pixels sharp.
SMALL = 48
# The side of an overlay, large enough to show a 7 x 7 map smooth.
OVERLAY = 128


def grid(pictures: Sequence[Picture], side: int) -> Markup:
    """Returns pictures with captions, each at most `side` pixels large."""
    figures = [figure(each.pixels, each.caption, side) for each in pictures]
    return group(figures, "grid")


def looks(found: Sequence[Look], side: int) -> Markup:
    """Returns each image beside its saliency maps."""
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
    """Returns an image over its caption, which keeps its lines."""
    lines = (tag("span", line) for line in text.splitlines())
    alt = "; ".join((alt or text).splitlines())
    return tag("figure", image(pixels, alt, side), tag("figcaption", *lines))


def image(pixels: np.ndarray, alt: str, side: int) -> Markup:
    """Returns pixels uint8 [H, W, C] as an <img>, downsized to at most `side` pixels."""
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
    """Returns uint8 [H, W, 3]: the image in grey under a heat map [h, w].

    The longer side has OVERLAY pixels or more. The map is scaled by its maximum. A heat of
    0 leaves the grey image unchanged; the largest heat is yellow.
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
