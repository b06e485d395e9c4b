"""Images in a page: inline data, and overlays of saliency maps."""

import base64
import io

import numpy as np
from PIL import Image

# Images up to this side stay lossless, and the page shows their pixels sharp.
SMALL = 48
# The largest side in the page. An overlay of a 7 x 7 map looks smooth at this size.
SIDE = 128
# The largest side of a thumbnail: of images of which a page has hundreds.
THUMBNAIL = 96


def thumbnail(pixels: np.ndarray) -> str:
    """Returns `source` of at most THUMBNAIL pixels."""
    return source(pixels, THUMBNAIL)


def source(pixels: np.ndarray, side: int = SIDE) -> str:
    """Returns pixels uint8 [H, W, C] as the src of an <img> of at most `side` pixels."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    kind = "png" if max(picture.size) <= SMALL else "jpeg"
    picture.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=None)
    out = io.BytesIO()
    picture.save(out, kind, optimize=True, quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Returns uint8 [H, W, 3]: the image in grey under a heat map [h, w].

    The longer side has SIDE pixels or more. The map is scaled by its maximum. A heat of 0
    leaves the grey image unchanged; the largest heat is yellow.
    """
    from matplotlib import colormaps

    height, width = pixels.shape[:2]
    factor = max(1, -(-SIDE // max(height, width)))
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
