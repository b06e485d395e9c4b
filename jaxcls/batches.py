"""(source, seed, step) -> batch: the input as a pure function of the step.

Training positions run on across epochs and nothing is dropped: row r of step s is
position s * B + r, and position p is record ``order(seed, p // n)[p % n]``. A resume,
another number of hosts or of threads is therefore arithmetic, not replay.

A thread pool over whole slices of a batch does the work: decoding releases the GIL,
and Grain's cost per element measured about a fifth of the decoding itself.
"""

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from jaxcls.errors import InputError

# Names the order function in the manifest; another order gets another name.
ORDER = "philox-argsort-1"
MAX_EXAMPLES = 10**8

# Philox counters that keep the streams of random numbers apart.
_CROP_STREAM = 1

Batch = dict[str, np.ndarray]
Op = Callable[..., np.ndarray]


class Records(Protocol):
    """What a batch is made from: see `sources.Source`."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Sequence[tuple[bytes, int]]: ...


@functools.lru_cache(maxsize=3)
def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The permutation [n] int64 of an epoch: a stable argsort of Philox's raw integers.

    Equal on every NumPy, thread and host; raises `InputError` above 10**8 examples.
    """
    if n > MAX_EXAMPLES:
        raise InputError(f"{n} training examples are more than {MAX_EXAMPLES}: use a slice")
    raw = np.random.Philox(key=[seed, epoch]).random_raw(n)
    permutation = np.argsort(raw, kind="stable")
    permutation.flags.writeable = False
    return permutation


def indices(positions: np.ndarray, n: int, seed: int) -> np.ndarray:
    """positions [N] int64 -> records [N] int64, each in 0..n-1."""
    epochs = positions // n
    out = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
        rows = epochs == epoch
        out[rows] = order(seed, epoch, n)[positions[rows] % n]
    return out


def example_rng(seed: int, position: int) -> np.random.Generator:
    """The generator of the host's random ops for one position of the run."""
    counter = [0, 0, 0, _CROP_STREAM]
    return np.random.Generator(np.random.Philox(key=[seed, position], counter=counter))


def train_batches(
    source: Records,
    ops: Sequence[Op],
    *,
    order_seed: int,
    crop_seed: int,
    batch_size: int,
    start: int,
    stop: int,
    rows: slice,
    threads: int = 0,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Batches of steps start..stop-1, in order: the `rows` of each that this host owns.

    Yields image uint8 [b, H, W, C], label int32 [b], index int64 [b] (of the record).
    Raises `InputError` naming the record where one does not decode.
    """

    def plan(step: int) -> tuple[np.ndarray, np.ndarray]:
        first = step * batch_size
        positions = np.arange(first + rows.start, first + rows.stop, dtype=np.int64)
        return positions, indices(positions, len(source), order_seed)

    plans = (plan(step) for step in range(start, stop))
    return _run(source, ops, plans, crop_seed, threads, prefetch)


def eval_batches(
    source: Records,
    ops: Sequence[Op],
    *,
    batch_size: int,
    rows: slice,
    threads: int = 0,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Every record once, in order, in ceil(n / batch_size) batches on every host.

    Like `train_batches`, with mask bool [b]: False marks the padding of the last batch,
    which repeats record 0.
    """
    n = len(source)

    def plan(first: int) -> tuple[np.ndarray, np.ndarray]:
        positions = np.arange(first + rows.start, first + rows.stop, dtype=np.int64)
        return positions, np.where(positions < n, positions, 0)

    starts = range(0, n, batch_size)
    batches = _run(source, ops, (plan(s) for s in starts), 0, threads, prefetch)
    for first, batch in zip(starts, batches, strict=True):
        positions = np.arange(first + rows.start, first + rows.stop)
        yield {**batch, "mask": positions < n}


def check_labels(batch: Batch, num_classes: int, split: str) -> None:
    """Raise `InputError`, naming `split`, for a label that is no class, as -1 is."""
    bad = np.flatnonzero((batch["label"] < 0) | (batch["label"] >= num_classes))
    if bad.size:
        raise InputError(
            f"{split}: record {batch['index'][bad[0]]} has label {batch['label'][bad[0]]},"
            f" and the classes are 0 to {num_classes - 1}; give a split that has labels"
        )


def transform(ops: Sequence[Op], image: bytes, rng: np.random.Generator) -> np.ndarray:
    """One encoded image through every op -> uint8 [H, W, C]."""
    out: Any = image
    for op in ops:
        out = op(out, rng)
    return out


def output_shape(
    ops: Sequence[Op], image_shape: tuple[int | None, int | None, int], key: str
) -> tuple[int, int, int]:
    """The shape (H, W, C) that `ops` give, found by running them on a blank image.

    Raises `InputError`, naming `key`, where images of several sizes stay so, or decode
    is not the first op and only there.
    """
    import cv2

    height, width, channels = image_shape
    shapes = set()
    for h, w in {(height or 300, width or 400), (height or 500, width or 333)}:
        pixels = np.zeros((h, w, channels), np.uint8)
        png = cv2.imencode(".png", pixels)[1].tobytes()
        try:
            shapes.add(transform(ops, png, example_rng(0, 0)).shape)
        except (AttributeError, ValueError):  # An op met bytes, or decode met pixels.
            raise InputError(
                f"{key} must begin with decode, and decode once, such as"
                " 'decode | resize(224)'"
            ) from None
    if len(shapes) > 1:
        raise InputError(
            f"{key} leaves images of several sizes; end it with one size, such as"
            " 'decode | resize_short(256) | center_crop(224)'"
        )
    h, w, c = shapes.pop()
    return h, w, c


def _run(
    source: Records,
    ops: Sequence[Op],
    plans: Iterable[tuple[np.ndarray, np.ndarray]],
    seed: int,
    threads: int,
    prefetch: int,
) -> Iterator[Batch]:
    """Batches of `plans`, in order, `prefetch` of them under way on a pool of threads."""
    threads = threads or _cores()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="data")
    waiting: deque[tuple[list[Future[tuple[np.ndarray, list[int]]]], np.ndarray]] = deque()
    plans = iter(plans)
    try:
        while True:
            while len(waiting) < prefetch + 1:
                plan = next(plans, None)
                if plan is None:
                    break
                positions, records = plan
                parts = np.array_split(np.arange(len(positions)), threads)
                futures = [
                    pool.submit(_slice, source, ops, positions[p], records[p], seed)
                    for p in parts
                    if p.size
                ]
                waiting.append((futures, records))
            if not waiting:
                return
            futures, records = waiting.popleft()
            done = [future.result() for future in futures]
            labels = [label for _, part in done for label in part]
            yield {
                "image": _join(np.concatenate, [images for images, _ in done]),
                "label": np.asarray(labels, np.int32),
                "index": records,
            }
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _cores() -> int:
    """The cores this process may use; macOS has no affinity to ask."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _slice(
    source: Records,
    ops: Sequence[Op],
    positions: np.ndarray,
    records: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, list[int]]:
    """Part of a batch: images uint8 [m, H, W, C] and their labels."""
    images, labels = [], []
    for position, index, (image, label) in zip(
        positions.tolist(), records.tolist(), source.read(records), strict=True
    ):
        try:
            images.append(transform(ops, image, example_rng(seed, position)))
        except ValueError as error:
            raise InputError(f"record {index} of the dataset: {error}") from None
        labels.append(label)
    return _join(np.stack, images), labels


def _join(join: Callable[..., np.ndarray], images: Sequence[np.ndarray]) -> np.ndarray:
    """One array of all `images`; raises `InputError` where their sizes differ."""
    try:
        return join(images)
    except ValueError:
        shapes = sorted({image.shape[-3:] for image in images})
        raise InputError(
            f"images of several sizes in one batch ({shapes[0]}, {shapes[-1]}); end"
            " data.train_ops and data.eval_ops with one size, such as resize(224)"
        ) from None
