"""Makes host batches as a pure function: (source, seed, step) -> batch.

Training positions run on across epochs, and no example is dropped. Row r of step s is
position s * B + r. Position p is record ``order(seed, p // n)[p % n]``. If each example
comes k times in a row, p // k replaces p. A resume, another number of hosts or another
number of threads is therefore arithmetic, not replay.

A thread pool decodes slices of a batch, because decoding releases the GIL. Grain's measured
cost per element is about a fifth of the decoding itself.
"""

import contextlib
import functools
import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from jaxcls.data import decode
from jaxcls.data.batch import Batch
from jaxcls.data.decode import Op
from jaxcls.errors import InputError, first_line

# The manifest holds the name of the order function; another order needs another name.
ORDER, BALANCED_ORDER = "philox-argsort-1", "philox-balanced-1"
MAX_EXAMPLES = 10**8

# Distinct Philox counters keep the random streams independent.
_CROP_STREAM, _BALANCE_STREAM, _SPLIT_STREAM = 1, 2, 3
# Random numbers per example and page; a crop needs at most 22.
_DRAWN = 32
# Slices of a batch per thread; with small slices, all threads finish together.
_SLICES = 4

Item = TypeVar("Item")
Result = TypeVar("Result")
# epoch -> the examples [n] in that epoch's order.
Order = Callable[[int], np.ndarray]


class Records(Protocol):
    """The records that batches are made from; see `sources.Source`."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Iterable[tuple[bytes, int]]: ...

    def where(self, index: int) -> str: ...


@functools.lru_cache(maxsize=3)
def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Returns the permutation [n] int64 of an epoch.

    It is a stable argsort of Philox's raw integers. The result is read-only, and equal on
    every NumPy version, thread and host. Raises `InputError` above 10**8 examples.
    """
    if n > MAX_EXAMPLES:
        raise InputError(f"{n} training examples are more than {MAX_EXAMPLES}: use a slice")
    raw = np.random.Philox(key=[seed, epoch]).random_raw(n)
    permutation = np.argsort(raw, kind="stable")
    permutation.flags.writeable = False
    return permutation


def by_class(seed: int, epoch: int, labels: np.ndarray) -> np.ndarray:
    """Returns the examples [n] int64 in the order of their classes, shuffled in each."""
    by_chance = order(seed, epoch, len(labels))
    return by_chance[np.argsort(labels[by_chance], kind="stable")]


def drawn(seed: int, n: int, count: int) -> np.ndarray:
    """Returns bool [n] with `count` of them True, drawn by chance."""
    places = np.random.Philox(key=[seed, 0], counter=[0, 0, 0, _SPLIT_STREAM])
    order = np.argsort(places.random_raw(n), kind="stable")
    return np.isin(np.arange(n), order[:count])


def balanced_order(seed: int, epoch: int, labels: np.ndarray) -> np.ndarray:
    """Returns the examples [n] int64 of an epoch that has every class equally often.

    labels: [n]. Each of K classes fills n / K places, give or take one. A class with fewer
    examples repeats them in one random order. A class with more examples leaves some out.
    """
    n, shuffled = len(labels), by_class(seed, epoch, labels)
    counts = np.bincount(labels)
    starts, present = np.cumsum(counts) - counts, np.flatnonzero(counts)
    places = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, _BALANCE_STREAM])
    mixed = np.argsort(places.random_raw(n), kind="stable")
    # Place i holds the (i // K)-th example of class (i + epoch) % K, so the class counts
    # differ by at most one.
    which = present[(np.arange(n) + epoch) % len(present)]
    turn = np.arange(n) // len(present)
    return shuffled[starts[which] + turn % counts[which]][mixed]


def indices(positions: np.ndarray, n: int, order: Order) -> np.ndarray:
    """Maps positions [N] int64 of the run to examples [N] int64, each in 0..n-1."""
    epochs = positions // n
    out = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
        rows = epochs == epoch
        out[rows] = order(epoch)[positions[rows] % n]
    return out


class BatchPlan(NamedTuple):
    """The rows of one host batch, before any record is read.

    positions: [b] int64, positions in the run. columns: the batch without images and
    labels; its index is in the source's numbering.
    """

    positions: np.ndarray
    columns: Batch


def train_plans(
    order: Order,
    n: int,
    batch_size: int,
    rows: slice,
    *,
    start: int,
    stop: int,
    repeats: int = 1,
) -> Iterator[BatchPlan]:
    """Yields the plans of steps start..stop-1 over n examples, for this host's `rows`.

    repeats: how many times in a row each example comes (Hoffer et al., arXiv:1901.09335).
    """
    for step in range(start, stop):
        first = step * batch_size
        positions = np.arange(first + rows.start, first + rows.stop, dtype=np.int64)
        turns = positions // repeats
        index, epoch = indices(turns, n, order), turns // n
        columns = Batch(index=index.astype(np.int32), epoch=epoch.astype(np.int32))
        yield BatchPlan(positions, columns)


def eval_plans(n: int, batch_size: int, rows: slice) -> Iterator[BatchPlan]:
    """Yields plans of n examples, each once and in order.

    Every host has ceil(n / batch_size) plans. Example 0 pads the last plan, with a False
    mask.
    """
    for first in range(0, n, batch_size):
        positions = np.arange(first + rows.start, first + rows.stop, dtype=np.int64)
        mask = positions < n
        index = np.where(mask, positions, 0).astype(np.int32)
        yield BatchPlan(positions, Batch(index=index, mask=mask))


class Random:
    """The host's endless random stream for one position of the run, in [0, 1)."""

    def __init__(self, seed: int, position: int, first: list[float]) -> None:
        self._seed, self._position = seed, position
        self._page, self._numbers = 0, first[::-1]

    def random(self) -> float:
        if not self._numbers:
            self._page += 1
            more = _uniform(self._seed, self._position, 1, self._page)
            self._numbers = more[0].tolist()[::-1]
        return self._numbers.pop()


def example_rngs(seed: int, first: int, n: int) -> list[Random]:
    """Returns the random stream of each position first..first+n-1, for the host ops.

    The stream of a position does not depend on `first` or `n`.
    """
    numbers = _uniform(seed, first, n, 0).tolist()
    return [Random(seed, first + i, row) for i, row in enumerate(numbers)]


def example_rng(seed: int, position: int) -> Random:
    """Returns the random stream of one position; see `example_rngs`."""
    return example_rngs(seed, position, 1)[0]


def _uniform(seed: int, first: int, n: int, page: int) -> np.ndarray:
    """Returns page `page` of the random numbers of n positions, float64 [n, _DRAWN].

    A number is the top 53 bits of a Philox integer.
    """
    # A counter makes four numbers, so adjacent positions use adjacent counters.
    counter = [first * (_DRAWN // 4), 0, page, _CROP_STREAM]
    raw = np.random.Philox(key=[seed, 0], counter=counter).random_raw(n * _DRAWN)
    return (raw >> np.uint64(11)).reshape(n, _DRAWN) * 2.0**-53


def check_labels(batch: Batch, num_classes: int, split: str) -> None:
    """Raises `InputError`, naming `split`, for a label outside the classes, such as -1."""
    bad = np.flatnonzero((batch.label < 0) | (batch.label >= num_classes))
    if bad.size:
        raise InputError(
            f"{split}: record {batch.index[bad[0]]} has label {batch.label[bad[0]]},"
            f" and the classes are 0 to {num_classes - 1}; give a split that has labels"
        )


def transform(ops: Sequence[Op], image: bytes | np.ndarray, rng: Random) -> np.ndarray:
    """Applies every op to an encoded image, or to pixels; returns uint8 [H, W, C].

    Raises `DecodeError` for an image that an op cannot take.
    """
    out: Any = image
    for op in ops:
        try:
            out = op(out, rng)
        except (InputError, decode.DecodeError, MemoryError):
            raise
        except Exception as error:  # An op may be the user's code.
            sides = np.shape(out)[1::-1]
            size = f" of {sides[0]}x{sides[1]} pixels" if len(sides) == 2 else ""
            raise decode.DecodeError(
                f"an op fails on an image{size} ({type(error).__name__}:"
                f" {first_line(error)}); mend the op, or leave the image out"
            ) from None
    return out


def output_shape(
    ops: Sequence[Op], image_shape: tuple[int | None, int | None, int], key: str
) -> tuple[int, int, int]:
    """Returns the output shape (H, W, C) of `ops`, found by running them on blank images.

    image_shape: the dataset's shape, with None where image sizes differ. Raises
    `InputError`, naming `key`, if the output size depends on the input size, if decode is
    not the first op and the only decode, or if an op fails.
    """
    import cv2

    height, width, channels = image_shape
    shapes = set()
    if [isinstance(op, decode.Decode) for op in ops] != [True] + [False] * (len(ops) - 1):
        raise InputError(
            f"{key} must begin with decode, and decode once, such as 'decode | resize(224)'"
        )
    for h, w in {(height or 300, width or 400), (height or 500, width or 333)}:
        pixels = np.zeros((h, w, channels), np.uint8)
        png = cv2.imencode(".png", pixels)[1].tobytes()
        try:
            out = transform(ops, png, example_rng(0, 0))
        except (InputError, decode.DecodeError) as error:
            raise InputError(f"{key}: {error}") from None
        if np.ndim(out) != 3 or out.dtype != np.uint8:
            raise InputError(
                f"{key}: its ops give {np.asarray(out).dtype} {list(np.shape(out))}, and"
                " must give uint8 [H, W, C]"
            )
        shapes.add(out.shape)
    if len(shapes) > 1:
        raise InputError(
            f"{key} leaves images of several sizes; end it with one size, such as"
            " 'decode | resize_short(256) | center_crop(224)'"
        )
    h, w, c = shapes.pop()
    return h, w, c


class _Filled:
    """A batch under construction; any thread may fill any slice, in any order."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan
        self.labels = np.empty(len(plan.positions), np.int32)
        self.images: np.ndarray | None = None
        self._lock = threading.Lock()

    def fill(self, source: Records, ops: Sequence[Op], seed: int, rows: range) -> None:
        """Decodes `rows`; raises `InputError` for a damaged record or of another size."""
        rngs = example_rngs(seed, int(self.plan.positions[rows[0]]), len(rows))
        index = self.plan.columns.index
        read = source.read(index[rows.start : rows.stop])
        for row, rng, (image, label) in zip(rows, rngs, read, strict=True):
            try:
                pixels = transform(ops, image, rng)
            except decode.DecodeError as error:
                where = source.where(int(index[row]))
                raise InputError(f"{where}: {error}") from None
            with self._lock:
                if self.images is None:
                    self.images = np.empty((len(self.labels), *pixels.shape), pixels.dtype)
            if pixels.shape != self.images.shape[1:]:
                shapes = sorted([pixels.shape, self.images.shape[1:]])
                raise InputError(
                    f"{source.where(int(index[row]))}: images of several sizes in one batch"
                    f" ({shapes[0]}, {shapes[1]}); end data.train_ops and data.eval_ops"
                    " with one size, such as resize(224)"
                )
            self.images[row], self.labels[row] = pixels, label


def decoded(
    source: Records,
    ops: Sequence[Op],
    plans: Iterable[BatchPlan],
    *,
    seed: int,
    threads: int = 0,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Yields the batches of `plans`, all of one size, in order, decoded on a thread pool.

    prefetch: the number of further batches under way. seed: keys the random ops. threads: 0
    means one per core. Raises `InputError`, naming the record, if one does not decode.
    """
    ops, plans, threads = decode.fuse(ops), iter(plans), threads or cores()
    first = next(plans, None)
    if first is None:
        return
    n = len(first.positions)
    starts = range(0, n, -(-n // (threads * _SLICES)))

    def fill(part: tuple[_Filled, int]) -> _Filled:
        batch, start = part
        batch.fill(source, ops, seed, range(start, min(start + starts.step, n)))
        return batch

    batches = map(_Filled, itertools.chain([first], plans))
    parts = ((batch, start) for batch in batches for start in starts)
    with contextlib.closing(in_order(fill, parts, threads, prefetch * len(starts))) as done:
        for batch in itertools.islice(done, len(starts) - 1, None, len(starts)):
            yield batch.plan.columns._replace(image=batch.images, label=batch.labels)


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int = 0,
    ahead: int = 0,
) -> Generator[Result]:
    """Yields ``map(function, items)`` in order, computed on threads; takes items lazily.

    threads: 0 means one per core. ahead: the number of items under way beyond the next
    result; 0 means twice the threads.
    """
    threads = threads or cores()
    waiting: deque[Future[Result]] = deque()
    pool, is_finalizing = ThreadPoolExecutor(threads, "data"), sys.is_finalizing
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > (ahead or 2 * threads):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        if not is_finalizing():  # The interpreter's exit ended the threads.
            pool.shutdown(wait=True, cancel_futures=True)


def cores() -> int:
    """Returns the number of cores that this process may use.

    macOS has no CPU affinity, so every core counts there.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
