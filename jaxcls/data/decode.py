"""Defines the ops of `data.train_ops`: encoded images -> uint8 pixels of one size.

An op is built once from its arguments and then called as ``op(image, rng)``. `rng` is the
random stream of the example, so every thread computes the same pixels. These ops only
decode, crop and resize. All other augmentation runs on the device.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from jaxcls.data.stills import MAX_PIXELS as MAX_PIXELS
from jaxcls.data.stills import DecodeError as DecodeError
from jaxcls.errors import InputError, lookup

cv2.setNumThreads(1)  # batches.py runs the threads, one per image.
# A damaged file raises DecodeError, so OpenCV must not print a line as well.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)


class Random(Protocol):
    """An op's random stream: `batches.Random` or NumPy's Generator."""

    def random(self) -> float: ...


Op = Callable[[Any, Random], np.ndarray]

# The longest side of an op's output.
MAX_SIDE = 8192
# Chroma upsampling needs this many rows below the crop.
CONTEXT = 2


class Frame(NamedTuple):
    """The size in a JPEG's header; place: the offset of the height in the file."""

    place: int
    height: int
    width: int

    def cut(self, image: bytes, height: int) -> bytes:
        """Returns the file with `height` in its header, so lower rows are not decoded."""
        return b"".join((image[: self.place], height.to_bytes(2), image[self.place + 2 :]))


def frame_of(image: bytes) -> Frame | None:
    """Returns the frame of a JPEG that decodes from the top, or None for other files.

    Such a JPEG has one scan of sequential Huffman codes, 8 bits a sample, one or three
    components and at most MAX_PIXELS.
    """
    if image[:2] != b"\xff\xd8":
        return None
    at, frame, colours = 2, None, 0
    with contextlib.suppress(IndexError):
        while image[at] == 0xFF:
            kind, length = image[at + 1], image[at + 2] << 8 | image[at + 3]
            if kind == 0xDA and image[at + 4] == colours:  # The scan has every colour.
                return frame
            if kind in (0xC0, 0xC1) and image[at + 4] == 8:
                height = image[at + 5] << 8 | image[at + 6]
                width = image[at + 7] << 8 | image[at + 8]
                colours = image[at + 9]
                if colours not in (1, 3) or not 0 < height * width <= MAX_PIXELS:
                    return None
                frame = Frame(at + 5, height, width)
            elif kind not in (0xC4, 0xDB, 0xDD, 0xFE) and not 0xE0 <= kind <= 0xEF:
                return None
            at += 2 + length
    return None


@dataclasses.dataclass(frozen=True)
class Decode:
    """An op: bytes -> uint8 [H, W, channels]. See `decode`."""

    channels: int

    def __call__(self, image: bytes, rng: Random) -> np.ndarray:
        return self.rows(image, frame_of(image), MAX_PIXELS)

    def rows(self, image: bytes, frame: Frame | None, stop: int) -> np.ndarray:
        """Decodes at least the first `stop` rows; if OpenCV decodes the file, all rows."""
        pixels = None
        if frame:
            # A truncated file is not cut: the strict decoder fails, and OpenCV decides.
            part = stop + CONTEXT < frame.height and image.endswith(b"\xff\xd9")
            data = frame.cut(image, stop + CONTEXT) if part else image
            with contextlib.suppress(ValueError):
                pixels = self.jpeg(data, strict=not part)
        return self.opencv(image) if pixels is None else pixels

    def jpeg(self, image: bytes, strict: bool = True) -> np.ndarray:
        """Decodes all pixels of a JPEG that has a `frame_of`.

        Raises `ValueError` for damage. If `strict`, this includes damage that libjpeg
        repairs.
        """
        colours = "GRAY" if self.channels == 1 else "RGB"
        pixels = simplejpeg.decode_jpeg(image, colours, strict=strict)
        return pixels.reshape(*pixels.shape[:2], self.channels)

    def opencv(self, image: bytes) -> np.ndarray:
        """Decodes all pixels of a JPEG or PNG; raises `DecodeError` if OpenCV cannot."""
        mode = cv2.IMREAD_GRAYSCALE if self.channels == 1 else cv2.IMREAD_COLOR_RGB
        pixels = None
        with contextlib.suppress(cv2.error):
            flags = mode | cv2.IMREAD_IGNORE_ORIENTATION
            pixels = cv2.imdecode(np.frombuffer(image, np.uint8), flags)
        if pixels is None:
            raise DecodeError(f"{len(image)} bytes that are no complete JPEG or PNG")
        return pixels.reshape(*pixels.shape[:2], self.channels)


def decode(channels: int = 3) -> Op:
    """Returns an op that decodes a JPEG or PNG: bytes -> uint8 [H, W, channels].

    channels: 1 (grey) or 3 (RGB). The op ignores EXIF rotation, as ImageNet's protocols do;
    `clean` applies the rotation to users' files. The op raises `DecodeError` for bytes that
    are not an image.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} must be 1 or 3")
    return Decode(channels)


def resize(size: int | tuple[int, int], filter: str = "bilinear") -> Op:
    """Returns an op that resizes to `size`, without keeping the aspect ratio.

    size: the side or (height, width). filter: a key of FILTERS.
    """
    height, width = _pair(size)
    scale = lookup(FILTERS, filter, "filter")
    return lambda image, rng: scale(image, height, width)


def resize_short(size: int, filter: str = "bilinear", rounding: str = "round") -> Op:
    """Returns an op that resizes the shorter side to `size` and keeps the aspect ratio.

    rounding: of the longer side. "round" rounds half to even, as big_vision; "truncate"
    rounds down, as torchvision and timm. The op raises `DecodeError` if its output has more
    than MAX_PIXELS.
    """
    (side, other), scale = _pair(size), lookup(FILTERS, filter, "filter")
    lengthened = lookup(ROUNDINGS, rounding, "rounding")
    if side != other:
        raise ValueError(f"size={size!r} must be one whole number")

    def apply(image: np.ndarray, rng: Random) -> np.ndarray:
        height, width = image.shape[:2]
        short = min(height, width)
        h, w = (max(side, lengthened(n, side, short)) for n in (height, width))
        if h * w > MAX_PIXELS:
            raise DecodeError(
                f"{width}x{height} pixels become {w}x{h}, over the limit of {MAX_PIXELS};"
                f" crop the image, leave it out, or use resize({side}) in place of"
                f" resize_short({side})"
            )
        return scale(image, h, w)

    return apply


def resize_long(size: int | tuple[int, int], filter: str = "bilinear") -> Op:
    """Returns an op that makes an image as large as fits in `size`, proportions kept.

    size: the side or (height, width). filter: a key of FILTERS. The other side is rounded
    half to even, as by Pillow's `ImageOps.contain`, and is at least 1.
    """
    (height, width), scale = _pair(size), lookup(FILTERS, filter, "filter")

    def apply(image: np.ndarray, rng: Random) -> np.ndarray:
        h, w = image.shape[:2]
        if w * height > h * width:
            return scale(image, max(1, round(h / w * width)), width)
        return scale(image, height, max(1, round(w / h * height)))

    return apply


def pad(size: int | tuple[int, int], fill: int | tuple[int, ...] = 0) -> Op:
    """Returns an op that puts an image in the middle of a canvas of one colour.

    size: the side or (height, width), which no image exceeds. fill: the canvas's grey, 0 to
    255, or its colour, one value a channel. The first margin is half of both, rounded half
    to even, as by Pillow's `ImageOps.pad`.
    """
    (height, width), values = _pair(size), np.atleast_1d(np.asarray(fill))
    is_colour = values.dtype.kind == "i" and values.shape in ((1,), (3,))
    if not is_colour or values.min() < 0 or values.max() > 255:
        raise ValueError(
            f"fill={fill!r} must be whole numbers from 0 to 255, one or one a channel; try"
            " fill=(124, 116, 104)"
        )

    def apply(image: np.ndarray, rng: Random) -> np.ndarray:
        h, w, channels = image.shape
        if h > height or w > width:
            raise DecodeError(
                f"{w}x{h} pixels do not fit in pad({size}); put resize_long({size}) before"
                " it"
            )
        if values.size not in (1, channels):
            raise DecodeError(
                f"fill={fill!r} has 3 values, and images {channels} channel; try"
                f" fill={int(values[0])}"
            )
        canvas = np.empty((height, width, channels), np.uint8)
        canvas[:] = values
        top, left = round((height - h) / 2), round((width - w) / 2)
        canvas[top : top + h, left : left + w] = image
        return canvas

    return apply


def letterbox(
    size: int | tuple[int, int],
    fill: int | tuple[int, ...] = 0,
    filter: str = "bilinear",
) -> Op:
    """Returns an op that shows the whole image on a canvas: `resize_long`, then `pad`."""
    resized, padded = resize_long(size, filter), pad(size, fill)
    return lambda image, rng: padded(resized(image, rng), rng)


def center_crop(size: int | tuple[int, int]) -> Op:
    """Returns an op that cuts out the center, and pads smaller images with black.

    size: the side or (height, width).
    """
    height, width = _pair(size)

    def apply(image: np.ndarray, rng: Random) -> np.ndarray:
        pad_y, pad_x = max(0, height - image.shape[0]), max(0, width - image.shape[1])
        if pad_y or pad_x:
            sides = (pad_y // 2, pad_y - pad_y // 2), (pad_x // 2, pad_x - pad_x // 2)
            image = np.pad(image, (*sides, (0, 0)))
        # Round half to even, as torchvision does.
        top = round((image.shape[0] - height) / 2)
        left = round((image.shape[1] - width) / 2)
        return image[top : top + height, left : left + width]

    return apply


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """An op that cuts out a random box and resizes it. See `random_resized_crop`."""

    height: int
    width: int
    box: Callable[[int, int, Random], tuple[int, int, int, int]]
    scale: Callable[[np.ndarray, int, int], np.ndarray]

    def __call__(self, image: np.ndarray, rng: Random) -> np.ndarray:
        return self.cut(image, self.box(image.shape[0], image.shape[1], rng))

    def decoded(self, decode: Decode, image: bytes, rng: Random) -> np.ndarray:
        """Decodes and crops in one; rows below the box are not decoded."""
        frame = frame_of(image)
        if frame is None:
            return self(decode(image, rng), rng)
        box = self.box(frame.height, frame.width, rng)
        return self.cut(decode.rows(image, frame, box[0] + box[2]), box)

    def cut(self, image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        top, left, h, w = box
        return self.scale(image[top : top + h, left : left + w], self.height, self.width)


def _box_of_torchvision(
    area: tuple[float, float],
    ratio: tuple[float, float],
    height: int,
    width: int,
    rng: Random,
) -> tuple[int, int, int, int]:
    """Draws a box as torchvision: uniform in area and in the logarithm of the ratio."""
    low, high = area
    flat, long = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        pixels = (low + (high - low) * rng.random()) * height * width
        shape = math.exp(flat + (long - flat) * rng.random())
        h, w = round(math.sqrt(pixels / shape)), round(math.sqrt(pixels * shape))
        if 0 < h <= height and 0 < w <= width:
            top = int(rng.random() * (height - h + 1))
            return top, int(rng.random() * (width - w + 1)), h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def _box_of_tensorflow(
    area: tuple[float, float],
    ratio: tuple[float, float],
    height: int,
    width: int,
    rng: Random,
) -> tuple[int, int, int, int]:
    """Draws a box as TensorFlow: uniform in the ratio, then in the heights that fit.

    If a hundred draws do not fit, the box is the whole image. A smaller box never touches
    the lower and the right border, as there.
    """
    least, most = (share * height * width for share in area)
    for _ in range(100):
        shape = ratio[0] + (ratio[1] - ratio[0]) * rng.random()
        tallest = min(
            round(math.sqrt(most / shape)), int((width + 0.4999999) / shape), height
        )
        h = min(round(math.sqrt(least / shape)), tallest)
        h += int(rng.random() * (tallest - h + 1))
        # Rounding may leave the range of areas by a row.
        h += (h * round(h * shape) < least) - (h * round(h * shape) > most)
        w = round(h * shape)
        if 0 < h <= height and 0 < w <= width and least <= h * w <= most:
            top, left = (int(rng.random() * n) for n in (height - h, width - w))
            return top, left, h, w
    return 0, 0, height, width


def fuse(ops: Sequence[Op]) -> list[Op]:
    """Merges a decode and the random crop after it; the pixels stay the same."""
    match ops:
        case [Decode() as decode, RandomResizedCrop() as crop, *others]:
            return [functools.partial(crop.decoded, decode), *others]
    return list(ops)


class _Undrawn(NamedTuple):
    """A random stream for an op that must not draw; name: of the op."""

    name: str

    def random(self) -> float:
        raise InputError(
            f"the host op {self.name!r} draws at random; put it into the table"
            " RANDOM_HOST_OPS, in place of HOST_OPS"
        )


def undrawn(name: str, factory: Callable[..., Op]) -> Callable[..., Op]:
    """Returns the factory of an op of a plug-in, which raises `InputError` if it draws."""

    @functools.wraps(factory)
    def make(*args: Any, **options: Any) -> Op:
        op = factory(*args, **options)
        return lambda image, rng: op(image, _Undrawn(name))

    return make


@dataclasses.dataclass(frozen=True)
class Growing:
    """An op that changes during a run; parts: (share of the run, op from then on)."""

    parts: tuple[tuple[float, Op], ...]

    def at(self, share: float) -> Op:
        """Returns the op after `share` of the run, 0..1."""
        return [op for start, op in self.parts if start <= share][-1]


def random_resized_crop(
    size: int | tuple[int, int] | tuple[tuple[float, int], ...],
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    filter: str = "linear",
    law: str = "torchvision",
) -> "Op | Growing":
    """Returns an op that resizes a random box to `size` (Szegedy et al., arXiv:1409.4842).

    area: the range of the box's share of the image. ratio: the range of width over height.
    law: "torchvision" draws the area uniformly and the ratio log-uniformly; if ten draws do
    not fit, the op takes the largest central crop within `ratio`. "tf" draws the ratio
    uniformly and then the height, as `tf.image.sample_distorted_bounding_box`, which
    big_vision uses: the boxes are smaller.
    A size that grows is a tuple of (share of the run, size) pairs: ((0, 128), (0.5, 192)).
    The result is then a `Growing`.
    """
    scale, of_law = lookup(FILTERS, filter, "filter"), lookup(LAWS, law, "law")
    if not 0 < area[0] <= area[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise ValueError(
            f"area={area}, ratio={ratio} must be (low, high), area within 0..1"
        )
    box = functools.partial(of_law, area, ratio)
    if not isinstance(size, Sequence) or not size or not isinstance(size[0], Sequence):
        return RandomResizedCrop(*_pair(size), box, scale)
    starts = [start for start, _ in size]
    if starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= 1:
        raise ValueError(
            f"size={size!r}: the shares of the run must rise from 0 to below 1, as in"
            " ((0, 128), (0.5, 192))"
        )
    crops = (RandomResizedCrop(*_pair(side), box, scale) for _, side in size)
    return Growing(tuple(zip(starts, crops, strict=True)))


def _pair(size: Any) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or any(not isinstance(s, int) or s < 1 for s in pair):
        raise ValueError(f"size={size!r} must be a whole number or (height, width)")
    if max(pair) > MAX_SIDE:
        raise ValueError(f"size={size!r} must be at most {MAX_SIDE} pixels")
    return pair[0], pair[1]


def _scaled(
    how: Image.Resampling | int, image: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Resizes an image [H, W, C] by a filter of Pillow or of OpenCV."""
    if image.shape[:2] == (height, width):
        return image
    if isinstance(how, Image.Resampling):
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        scaled = np.asarray(picture.resize((width, height), how))
    else:
        scaled = cv2.resize(image, (width, height), interpolation=how)
    return scaled.reshape(height, width, image.shape[2])


# Pillow's filters are antialiased, as in published evaluations. OpenCV's linear and
# cubic filters are not antialiased, but are faster for training crops.
FILTERS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "bilinear": functools.partial(_scaled, Image.Resampling.BILINEAR),
    "bicubic": functools.partial(_scaled, Image.Resampling.BICUBIC),
    "linear": functools.partial(_scaled, cv2.INTER_LINEAR),
    "cubic": functools.partial(_scaled, cv2.INTER_CUBIC),
    "area": functools.partial(_scaled, cv2.INTER_AREA),
}


# (a side of the image, new shorter side, its shorter side) -> the new side.
ROUNDINGS: dict[str, Callable[[int, int, int], int]] = {
    "round": lambda n, side, short: round(n * (side / short)),
    "truncate": lambda n, side, short: n * side // short,
}
LAWS: dict[str, Callable[..., tuple[int, int, int, int]]] = {
    "torchvision": _box_of_torchvision,
    "tf": _box_of_tensorflow,
}

HOST_OPS: Mapping[str, Callable[..., Op | Growing]] = MappingProxyType(
    {
        "decode": decode,
        "resize": resize,
        "resize_short": resize_short,
        "resize_long": resize_long,
        "pad": pad,
        "letterbox": letterbox,
        "center_crop": center_crop,
    }
)
# Their pixels differ at each position of a run.
RANDOM_HOST_OPS: Mapping[str, Callable[..., Op | Growing]] = MappingProxyType(
    {"random_resized_crop": random_resized_crop}
)
