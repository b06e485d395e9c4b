"""The input as a function of the step: order, batches, hosts, threads."""

import functools
import itertools
import threading
import time

import cv2
import jax
import numpy as np
import pytest

from jaxcls.data import batches, decode
from jaxcls.errors import InputError


class Numbered:
    """n records, each its own number in four bytes; `asked` counts those read."""

    def __init__(self, n):
        self.n, self.asked = n, 0

    def __len__(self):
        return self.n

    def read(self, indices):
        assert ((indices >= 0) & (indices < self.n)).all()
        self.asked += len(indices)
        return ((np.int32(i).tobytes(), i % 7) for i in indices.tolist())

    def where(self, index):
        return f"record {index} of the dataset"


def pixels(image, rng):
    """The number of a record as an image, and a random one beside it."""
    drawn = np.array([256 * rng.random() for _ in range(4)]).astype(np.uint8)
    return np.concatenate([np.frombuffer(image, np.uint8), drawn]).reshape(1, 2, 4)


def training(source, batch_size=8, start=0, stop=10, rows=None, ops=(pixels,), **options):
    """The batches of some steps, lazily."""
    n, options = len(source), {"order_seed": 3, "seed": 3, "threads": 2, **options}
    order = functools.partial(batches.order, options.pop("order_seed"), n=n)
    rows = rows or slice(0, batch_size)
    plans = batches.train_plans(order, n, batch_size, rows, start=start, stop=stop)
    return batches.decoded(source, ops, plans, **options)


def train(*arguments, **options):
    return list(training(*arguments, **options))


def evaluate(source, batch_size, rows=None, ops=(pixels,), **options):
    plans = batches.eval_plans(len(source), batch_size, rows or slice(0, batch_size))
    return list(batches.decoded(source, ops, plans, seed=0, **options))


def equal(ours, theirs):
    assert ours
    alike = functools.partial(np.testing.assert_array_equal, strict=True)
    jax.tree.map(alike, ours, theirs)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (7, 3), (2**32 - 1, 999)])
def test_order_sorts_the_records_by_philoxs_numbers(seed, epoch):
    raw = np.random.Philox(key=[seed, epoch]).random_raw(101)
    expected = sorted(range(101), key=lambda i: raw[i])
    assert batches.order(seed, epoch, 101).tolist() == expected


def test_order_is_these_very_records_for_ever():
    assert batches.ORDER == "philox-argsort-1"
    assert batches.order(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert batches.order(0, 1, 10).tolist() == [5, 3, 7, 8, 2, 4, 1, 0, 6, 9]


@pytest.mark.parametrize("counts", [[5, 5], [1, 30, 7, 0, 2], [100, 3], [4], [0, 0, 9, 1]])
def test_a_balanced_order_has_every_class_equally_often(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    n, present = len(labels), np.flatnonzero(counts)
    for epoch in range(2 * len(present)):
        picked = batches.balanced_order(3, epoch, labels)
        assert len(picked) == n
        per_class = np.bincount(labels[picked], minlength=len(counts))[present]
        assert per_class.max() - per_class.min() <= 1
        times = np.bincount(picked, minlength=n)
        for k in present:  # Nothing a second time before all of its class were there.
            assert times[labels == k].max() - times[labels == k].min() <= 1
    seen = [batches.balanced_order(3, e, labels).tobytes() for e in range(3)]
    assert n < 5 or len(set(seen)) == 3
    assert batches.balanced_order(3, 1, labels).tobytes() == seen[1]


def test_a_balanced_order_is_these_very_records_for_ever():
    assert batches.BALANCED_ORDER == "philox-balanced-1"
    labels = np.array([0, 1, 0, 0, 0, 2, 0, 0])
    assert batches.balanced_order(0, 0, labels).tolist() == [4, 1, 5, 1, 1, 2, 0, 5]


def test_order_refuses_too_many_examples_and_names_the_remedy():
    with pytest.raises(InputError, match=r"100000001 training examples .*100000000: use a"):
        batches.order(0, 0, 10**8 + 1)


def test_a_batch_holds_the_records_that_the_formula_says():
    source = Numbered(50)
    for step, batch in enumerate(train(source)):
        positions = np.arange(step * 8, step * 8 + 8)
        expected = [batches.order(3, p // 50, 50)[p % 50] for p in positions.tolist()]
        assert batch.index.tolist() == expected
        assert batch.image.dtype == np.uint8
        assert batch.image[:, 0, 0].copy().view(np.int32)[:, 0].tolist() == expected
        assert batch.label.dtype == np.int32
        assert batch.label.tolist() == [i % 7 for i in expected]


@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize(("threads", "prefetch"), [(2, 1), (5, 30), (0, 2)])
def test_any_threads_and_prefetch_give_the_same_batches(size, threads, prefetch):
    found = train(Numbered(50), size, threads=threads, prefetch=prefetch)
    equal(found, train(Numbered(50), size, threads=1))


def test_a_batch_is_given_when_its_last_row_is_decoded():
    last = batches.order(3, 0, 50)[7]

    def late(image, rng):
        time.sleep(0.1 * (np.frombuffer(image, np.int32)[0] == last))
        return pixels(image, rng)

    made = training(Numbered(50), ops=[late], threads=8)
    batch = next(made)  # To close `made` would wait for the row.
    found = batch.image[:, 0, 0].copy().view(np.int32)[:, 0]
    assert found.tolist() == batch.index.tolist()


def test_starting_at_a_step_gives_the_batches_that_walking_there_gives():
    walked = train(Numbered(50), stop=20)
    for start in (1, 6, 7, 19):
        equal(train(Numbered(50), start=start, stop=20), walked[start:])


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_hosts_batches_side_by_side_are_the_global_batch(hosts):
    local = 8 // hosts
    parts = [
        train(Numbered(50), rows=slice(h * local, h * local + local)) for h in range(hosts)
    ]
    joined = [
        jax.tree.map(lambda *x: np.concatenate(x), *row) for row in zip(*parts, strict=True)
    ]
    equal(joined, train(Numbered(50)))


def test_every_record_appears_once_an_epoch_and_none_is_dropped():
    n, epochs = 45, 8
    seen = np.concatenate([b.index for b in train(Numbered(n), stop=n * epochs // 8)])
    for epoch in seen.reshape(epochs, n):
        assert sorted(epoch.tolist()) == list(range(n))


def test_a_step_far_away_is_reached_without_replay():
    n, size, step = 1_281_167, 256, 10**6
    source = Numbered(n)
    (batch,) = train(source, size, start=step, stop=step + 1)
    first, at = divmod(step * size, n)
    assert batch.index.tolist() == batches.order(3, first, n)[at : at + size].tolist()
    assert source.asked == size


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (3, 70), (2**32 - 1, 10**12)])
def test_crops_draw_from_a_stream_of_their_own_for_each_position(seed, position):
    counters = [[8 * position, 0, page, 1] for page in range(3)]
    pages = [np.random.Philox(key=[seed, 0], counter=at) for at in counters]
    expected = [x for page in pages for x in np.random.Generator(page).random(32)]
    alone = batches.example_rng(seed, position)
    among = batches.example_rngs(seed, max(0, position - 3), 9)[min(3, position)]
    for rng in (alone, among):
        assert [rng.random() for _ in expected] == expected


@pytest.mark.parametrize(("other", "same"), [("seed", "index"), ("order_seed", "image")])
def test_crops_and_order_are_seeded_apart(other, same):
    for x, y in zip(train(Numbered(50), **{other: 9}), train(Numbered(50)), strict=True):
        pairs = [(x.index, y.index), (x.image[:, 0, 1], y.image[:, 0, 1])]
        found = [np.array_equal(*pair) for pair in pairs]
        assert found == [same == "index", same == "image"]


def data_threads():
    return [t for t in threading.enumerate() if t.name.startswith("data")]


def test_an_abandoned_iterator_ends_its_threads():
    made = training(Numbered(50), stop=10**9)
    next(made)
    assert data_threads()
    made.close()
    assert not data_threads()


@pytest.mark.parametrize("batch_size", [4, 5, 8, 20, 64])
@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_reads_every_record_once_and_masks_the_padding(batch_size, hosts):
    edges = [batch_size * host // hosts for host in range(hosts + 1)]
    rows = [slice(*pair) for pair in itertools.pairwise(edges)]
    parts = [evaluate(Numbered(20), batch_size, each) for each in rows]
    for host in zip(*parts, strict=True):
        assert sum(len(batch.mask) for batch in host) == batch_size
    made = [batch for host in zip(*parts, strict=True) for batch in host]
    mask, index, label = (
        np.concatenate([getattr(batch, name) for batch in made])
        for name in ("mask", "index", "label")
    )
    assert index[mask].tolist() == list(range(20))
    assert label[mask].tolist() == [i % 7 for i in range(20)]
    assert not index[~mask].any()


def test_a_record_that_does_not_decode_is_named():
    with pytest.raises(InputError, match=r"^record 0 of the dataset: 4 bytes that are no"):
        evaluate(Numbered(1), 1, ops=[decode.decode()])
    fails = decode.DecodeError("broken")

    def fail_at_17(image, rng):
        if np.frombuffer(image, np.int32)[0] == 17:
            raise fails
        return pixels(image, rng)

    with pytest.raises(InputError, match=r"^record 17 of the dataset: broken"):
        train(Numbered(20), 10, stop=2, ops=[fail_at_17])
    assert not data_threads()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("broken"), r"ValueError: broken\)"),
        (IndexError("index 7"), r"IndexError: index 7\)"),
        (ZeroDivisionError(), r"ZeroDivisionError: ZeroDivisionError\)"),
        (cv2.error("two\nlines"), r"error: two\)"),
    ],
)
def test_an_image_that_an_op_cannot_take_is_named_with_what_to_do(error, said):
    def fails(image, rng):
        if image[0, 0, 0] == 17:
            raise error
        return image

    ops = [pixels, fails]
    said = rf"^record 17 of the dataset: an op fails on an image of 2x1 pixels \({said}"
    for read in (lambda: train(Numbered(20), 10, stop=2, ops=ops),
                 lambda: evaluate(Numbered(20), 7, ops=ops)):  # fmt: skip
        with pytest.raises(
            InputError, match=f"{said}; mend the op, or leave the image out"
        ):
            read()


def test_no_memory_is_no_fault_of_an_image():
    def fails(image, rng):
        raise MemoryError

    with pytest.raises(MemoryError):
        evaluate(Numbered(4), 4, ops=[fails])


@pytest.mark.parametrize("threads", [1, 4])
def test_images_of_several_sizes_are_refused(threads):
    def grows(image, rng):
        return np.zeros((1 + np.frombuffer(image, np.int32)[0], 2, 3), np.uint8)

    said = r"^record \d of the dataset: images of several sizes .*such as resize\(224\)"
    with pytest.raises(InputError, match=said):
        evaluate(Numbered(4), 4, ops=[grows], threads=threads)


DECODE = decode.decode()


@pytest.mark.parametrize(
    ("ops", "image_shape", "expected"),
    [
        ([decode.decode(1)], (8, 8, 1), (8, 8, 1)),
        ([DECODE], (8, 9, 1), (8, 9, 3)),
        (
            [DECODE, decode.resize_short(9), decode.center_crop(7)],
            (None, None, 3),
            (7, 7, 3),
        ),
        ([DECODE, decode.random_resized_crop(6)], (None, None, 3), (6, 6, 3)),
        ([DECODE, decode.resize_short(16)], (8, 16, 3), (16, 32, 3)),
    ],
)
def test_the_shape_of_a_batch_is_known_without_data(ops, image_shape, expected):
    assert batches.output_shape(ops, image_shape, "data.eval_ops") == expected


SIZES = "data.train_ops leaves images of several sizes; end it with one size, such as"
FIRST = "data.train_ops must begin with decode"


@pytest.mark.parametrize(
    ("ops", "said"),
    [
        ([DECODE], SIZES),
        ([DECODE, decode.resize_short(32)], SIZES),
        ([], FIRST),
        ([decode.resize(8)], FIRST),
        ([decode.center_crop(8), DECODE], FIRST),
        ([DECODE, DECODE], FIRST),
    ],
)
def test_a_pipeline_of_no_one_size_or_without_decode_is_refused(ops, said):
    with pytest.raises(InputError, match=said):
        batches.output_shape(ops, (None, None, 3), "data.train_ops")


def test_results_come_in_order_and_an_error_ends_the_work():
    assert list(batches.in_order(lambda k: k * k, range(50), 4)) == [
        k * k for k in range(50)
    ]
    assert list(batches.in_order(lambda k: k, [], 0)) == []
    done = []

    def work(k):
        done.append(k)
        return 1 // (k - 20)

    with pytest.raises(ZeroDivisionError):
        list(batches.in_order(work, range(10_000), 2))
    assert len(done) < 100


def test_items_are_taken_a_few_ahead_of_the_results():
    taken = []

    def items():
        for k in range(100):
            taken.append(k)
            yield k

    results = batches.in_order(lambda k: k, items(), 2, ahead=10)
    assert [next(results) for _ in range(5)] == [*range(5)]
    assert len(taken) == 15
    assert list(results) == [*range(5, 100)]
