"""(source, seed, step) -> batch: the input as a pure function of the step.

Training positions run on across epochs and nothing is dropped: row r of step s is
position s * B + r, and position p is record ``order(seed, p // n)[p % n]`` (where each
comes k times in a row, p // k stands for p). A resume,
another number of hosts or of threads is therefore arithmetic, not replay.

A thread pool over slices of a batch does the work: decoding releases the GIL, and
Grain's cost per element measured about a fifth of the decoding itself.
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

# Names the order function in the manifest; another order gets another name.
ORDER, BALANCED_ORDER = "philox-argsort-1", "philox-balanced-1"
MAX_EXAMPLES = 10**8

# Philox counters that keep the streams of random numbers apart.
_CROP_STREAM, _BALANCE_STREAM = 1, 2
# Random numbers of an example that are drawn at once: a crop needs 22 at most.
_DRAWN = 32
# Slices of a batch for each thread: smaller ones end together.
_SLICES = 4

Op = Callable[..., np.ndarray]
Item = TypeVar("Item")
Result = TypeVar("Result")
# epoch -> the examples [n] in the order of that epoch.
Order = Callable[[int], np.ndarray]


class Records(Protocol):
    """What a batch is made from: see `sources.Source`."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Iterable[tuple[bytes, int]]: ...

    def where(self, index: int) -> str: ...


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


def balanced_order(seed: int, epoch: int, labels: np.ndarray) -> np.ndarray:
    """labels [n] -> the examples [n] int64 of an epoch that has every class equally often.

    Each class fills n / K places, up to one: its examples in random order, over and over
    where they are fewer, some of them left out where they are more.
    """
    n = len(labels)
    by_chance = order(seed, epoch, n)
    by_class = by_chance[np.argsort(labels[by_chance], kind="stable")]
    counts = np.bincount(labels)
    starts, present = np.cumsum(counts) - counts, np.flatnonzero(counts)
    places = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, _BALANCE_STREAM])
    mixed = np.argsort(places.random_raw(n), kind="stable")
    # Place i is the (i // K)-th of class i % K: no class has more than one above another.
    which = present[(np.arange(n) + epoch) % len(present)]
    turn = np.arange(n) // len(present)
    return by_class[starts[which] + turn % counts[which]][mixed]


def indices(positions: np.ndarray, n: int, order: Order) -> np.ndarray:
    """positions [N] int64 of the run -> examples [N] int64, each in 0..n-1."""
    epochs = positions // n
    out = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
        rows = epochs == epoch
        out[rows] = order(epoch)[positions[rows] % n]
    return out


class BatchPlan(NamedTuple):
    """What a host makes one batch of, before anything is read.

    positions, examples: [b] int64, of the run and in the source. epoch, mask: as in
    `Batch`.
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
    """Plans of steps start..stop-1 over n examples: the `rows` that this host owns.

    repeats: how often each example comes in a row (Hoffer et al., arXiv:1901.09335).
    """
    for step in range(start, stop):
        first = step * batch_size
        positions = np.arange(first + rows.start, first + rows.stop, dtype=np.int64)
        turns = positions // repeats
        epoch = (turns // n).astype(np.int32)
        yield BatchPlan(positions, indices(turns, n, order), epoch=epoch)


def eval_plans(n: int, batch_size: int, rows: slice) -> Iterator[BatchPlan]:
    """Plans of n examples, each once and in order: ceil(n / batch_size) on every host.

    The padding of the last one repeats example 0.
    """
    for first in range(0, n, batch_size):
        positions = np.arange(first + rows.start, first + rows.stop, dtype=np.int64)
        mask = positions < n
        yield BatchPlan(positions, np.where(mask, positions, 0), mask=mask)


class Random:
    """The host's random numbers for one position of the run: endless, in [0, 1)."""

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
    """What the ops of positions first..first+n-1 draw from; each as if alone."""
    numbers = _uniform(seed, first, n, 0).tolist()
    return [Random(seed, first + i, row) for i, row in enumerate(numbers)]


def example_rng(seed: int, position: int) -> Random:
    """What the ops of one position draw from."""
    return example_rngs(seed, position, 1)[0]


def _uniform(seed: int, first: int, n: int, page: int) -> np.ndarray:
    """Page `page` of n positions' numbers, float64 [n, _DRAWN]: Philox's top 53 bits."""
    # A counter makes four numbers, so neighbours lie one after the other.
    counter = [first * (_DRAWN // 4), 0, page, _CROP_STREAM]
    raw = np.random.Philox(key=[seed, 0], counter=counter).random_raw(n * _DRAWN)
    return (raw >> np.uint64(11)).reshape(n, _DRAWN) * 2.0**-53


def check_labels(batch: Batch, num_classes: int, split: str) -> None:
    """Raise `InputError`, naming `split`, for a label that is no class, as -1 is."""
    bad = np.flatnonzero((batch.label < 0) | (batch.label >= num_classes))
    if bad.size:
        raise InputError(
            f"{split}: record {batch.index[bad[0]]} has label {batch.label[bad[0]]},"
            f" and the classes are 0 to {num_classes - 1}; give a split that has labels"
        )


def transform(ops: Sequence[Op], image: bytes, rng: Random) -> np.ndarray:
    """One encoded image through every op -> uint8 [H, W, C]."""
    out: Any = image
    for op in ops:
        out = op(out, rng)
    return out


def fuse(ops: Sequence[Op]) -> list[Op]:
    """Ops that give the same pixels sooner: an op may do its predecessor's work too.

    It says so by a method `after`: the predecessor -> one op for both, or None.
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


class _Filled:
    """A batch being made: slices of it are filled by any thread, in any order."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan
        self.labels = np.empty(len(plan.examples), np.int32)
        self.images: np.ndarray | None = None
        self._lock = threading.Lock()

    def fill(
        self, source: Records, ops: Sequence[Op], seed: int, first: int, stop: int
    ) -> None:
        """Rows first..stop-1."""
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
        """The batch, once every row is filled."""
        assert self.images is not None
        plan = self.plan
        return Batch(self.images, self.labels, plan.examples, plan.epoch, plan.mask)

    def _images_like(self, pixels: np.ndarray) -> np.ndarray:
        """The batch's array, made at the first image; all must have its size."""
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
    """The batches of `plans`, in order, `prefetch` of them under way on a pool of threads.

    index is int64 [b], as the source counts. `seed`: of the random ops.
    Raises `InputError` naming the record where one does not decode.
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
        if not is_finalizing():  # The interpreter has ended the threads by then.
            pool.shutdown(wait=True, cancel_futures=True)


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int = 0,
    ahead: int = 0,
) -> Iterator[Result]:
    """``map(function, items)`` on threads, in order; items are taken as they are needed.

    threads: 0 is one a core. ahead: how many items are under way beyond the one that is
    waited for; 0 is twice the threads.
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
        if not is_finalizing():  # The interpreter has ended the threads by then.
            pool.shutdown(wait=True, cancel_futures=True)


def cores() -> int:
    """The cores this process may use; macOS has no affinity to ask."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
