"""Makes host batches as a pure function: (source, seed, step) -> batch.

Training positions run on across epochs, and no example is dropped. Row r of step s is
position s * B + r. Position p is record ``order(seed, p // n)[p % n]``. If each example
comes k times in a row, p // k replaces p. A resume, another number of hosts or another
number of threads is therefore arithmetic, not replay.

A thread pool decodes slices of a batch, because decoding releases the GIL. Grain's measured
cost per element is about a fifth of the decoding itself.
"""

import functools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from jaxcls.data.batch import Batch
from jaxcls.errors import InputError

# The manifest holds the name of the order function; another order needs another name.
ORDER, BALANCED_ORDER = "philox-argsort-1", "philox-balanced-1"
MAX_EXAMPLES = 10**8

# Distinct Philox counters keep the random streams independent.
_CROP_STREAM, _BALANCE_STREAM = 1, 2
# Random numbers per example and page; a crop needs at most 22.
_DRAWN = 32
# Slices of a batch per thread; with small slices, all threads finish together.
_SLICES = 4

Op = Callable[..., np.ndarray]
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


def balanced_order(seed: int, epoch: int, labels: np.ndarray) -> np.ndarray:
    """Returns the examples [n] int64 of an epoch that has every class equally often.

    labels: [n]. Each of K classes fills n / K places, give or take one. A class with fewer
    examples repeats them in one random order. A class with more examples leaves some out.
    """
    n = len(labels)
    by_chance = order(seed, epoch, n)
    by_class = by_chance[np.argsort(labels[by_chance], kind="stable")]
    counts = np.bincount(labels)
    starts, present = np.cumsum(counts) - counts, np.flatnonzero(counts)
    places = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, _BALANCE_STREAM])
    mixed = np.argsort(places.random_raw(n), kind="stable")
    # Place i holds the (i // K)-th example of class (i + epoch) % K, so the class counts
    # differ by at most one.
    which = present[(np.arange(n) + epoch) % len(present)]
    turn = np.arange(n) // len(present)
    return by_class[starts[which] + turn % counts[which]][mixed]


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

    positions: [b] int64, positions in the run. examples: [b] int64, indices in the source.
    epoch, mask: as in `Batch`.
    """

    positions: np.ndarray
    examples: np.ndarray
    epoch: Any = ()
    mask: Any = ()


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
        epoch = (turns // n).astype(np.int32)
        yield BatchPlan(positions, indices(turns, n, order), epoch=epoch)


def eval_plans(n: int, batch_size: int, rows: slice) -> Iterator[BatchPlan]:
    """Yields plans of n examples, each once and in order.

    Every host has ceil(n / batch_size) plans. Example 0 pads the last plan, with a False
    mask.
    """
    for first in range(0, n, batch_size):
        positions = np.arange(first + rows.start, first + rows.stop, dtype=np.int64)
        mask = positions < n
        yield BatchPlan(positions, np.where(mask, positions, 0), mask=mask)


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


def transform(ops: Sequence[Op], image: bytes, rng: Random) -> np.ndarray:
    """Applies every op to one encoded image; returns uint8 [H, W, C]."""
    out: Any = image
    for op in ops:
        out = op(out, rng)
    return out


def fuse(ops: Sequence[Op]) -> list[Op]:
    """Merges adjacent ops where that saves work; the pixels stay the same.

    An op supports this with a method `after`. It maps the preceding op to one op for both,
    or to None.
    """
    fused: list[Op] = []
    for op in ops:
        after = getattr(op, "after", None)
        both = after(fused[-1]) if after and fused else None
        fused = [*fused[:-1], both] if both else [*fused, op]
    return fused


def output_shape(
    ops: Sequence[Op], image_shape: tuple[int | None, int | None, int], key: str
) -> tuple[int, int, int]:
    """Returns the output shape (H, W, C) of `ops`, found by running them on blank images.

    image_shape: the dataset's shape, with None where image sizes differ. Raises
    `InputError`, naming `key`, if the output size depends on the input size, or if decode
    is not the first op and the only decode.
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


class _Filled:
    """A batch under construction; any thread may fill any slice, in any order."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan
        self.labels = np.empty(len(plan.examples), np.int32)
        self.images: np.ndarray | None = None
        self._lock = threading.Lock()

    def fill(
        self, source: Records, ops: Sequence[Op], seed: int, first: int, stop: int
    ) -> None:
        """Decodes rows first..stop-1; raises `InputError` for a damaged record."""
        rngs = example_rngs(seed, int(self.plan.positions[first]), stop - first)
        read = source.read(self.plan.examples[first:stop])
        for row, rng, (image, label) in zip(range(first, stop), rngs, read, strict=True):
            try:
                pixels = transform(ops, image, rng)
            except ValueError as error:
                where = source.where(int(self.plan.examples[row]))
                raise InputError(f"{where}: {error}") from None
            self._images_like(pixels)[row] = pixels
            self.labels[row] = label

    def whole(self) -> Batch:
        """Returns the batch; every row must be filled."""
        assert self.images is not None
        plan = self.plan
        return Batch(self.images, self.labels, plan.examples, plan.epoch, plan.mask)

    def _images_like(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the batch's image array, allocated for the first image.

        Raises `InputError` if `pixels` has another size than the first image.
        """
        if self.images is None:
            with self._lock:
                if self.images is None:
                    shape = len(self.labels), *pixels.shape
                    self.images = np.empty(shape, pixels.dtype)
        if pixels.shape != self.images.shape[1:]:
            shapes = sorted([pixels.shape, self.images.shape[1:]])
            raise InputError(
                f"images of several sizes in one batch ({shapes[0]}, {shapes[1]}); end"
                " data.train_ops and data.eval_ops with one size, such as resize(224)"
            )
        return self.images


def decoded(
    source: Records,
    ops: Sequence[Op],
    plans: Iterable[BatchPlan],
    *,
    seed: int,
    threads: int = 0,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Yields the batches of `plans` in order, decoded on a thread pool.

    prefetch: the number of further batches under way. The index of a batch is int64 [b], in
    the source's numbering. seed: keys the random ops. threads: 0 means one per core. Raises
    `InputError`, naming the record, if a record does not decode.
    """
    ops = fuse(ops)
    threads = threads or cores()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="data")
    waiting: deque[tuple[list[Future[None]], _Filled]] = deque()
    plans, is_finalizing = iter(plans), sys.is_finalizing
    try:
        while True:
            while len(waiting) < prefetch + 1:
                plan = next(plans, None)
                if plan is None:
                    break
                batch = _Filled(plan)
                rows = len(plan.examples)
                each = -(-rows // (threads * _SLICES))
                futures = [
                    pool.submit(batch.fill, source, ops, seed, i, min(i + each, rows))
                    for i in range(0, rows, each)
                ]
                waiting.append((futures, batch))
            if not waiting:
                return
            futures, batch = waiting.popleft()
            for future in futures:
                future.result()
            yield batch.whole()
    finally:
        if not is_finalizing():  # The interpreter's exit ended the threads.
            pool.shutdown(wait=True, cancel_futures=True)


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int = 0,
    ahead: int = 0,
) -> Iterator[Result]:
    """Yields ``map(function, items)`` in order, computed on threads; takes items lazily.

    threads: 0 means one per core. ahead: the number of items under way beyond the next
    result; 0 means twice the threads.
    """
    threads = threads or cores()
    waiting: deque[Future[Result]] = deque()
    pool, is_finalizing = ThreadPoolExecutor(threads, "items"), sys.is_finalizing
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
