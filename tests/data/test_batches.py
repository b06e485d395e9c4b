"""The input as a function of the step: order, batches, hosts, threads."""

import functools
import threading

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from jaxcls.data import batches, decode, sources
from jaxcls.errors import InputError
from tests.properties import examples

MASK = 2**64 - 1


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


def train_batches(source, ops, *, order_seed, crop_seed, batch_size, rows, **options):
    n = len(source)
    span = {name: options.pop(name) for name in ("start", "stop")}

    def order(epoch):
        return batches.order(order_seed, epoch, n)

    plans = batches.train_plans(order, n, batch_size, rows, **span)
    return batches.decoded(source, ops, plans, seed=crop_seed, **options)


def eval_batches(source, ops, *, batch_size, rows, **options):
    plans = batches.eval_plans(len(source), batch_size, rows)
    return batches.decoded(source, ops, plans, seed=0, **options)


def train(source, batch_size=8, start=0, stop=10, rows=None, **options):
    options = {"order_seed": 3, "crop_seed": 3, "threads": 2, **options}
    rows = rows or slice(0, batch_size)
    made = train_batches(
        source,
        [pixels],
        batch_size=batch_size,
        start=start,
        stop=stop,
        rows=rows,
        **options,
    )
    return list(made)


def equal(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), a, b)


def philox(key, n, counter=(0, 0, 0, 0)):
    """Philox4x64-10 in whole numbers (Salmon et al., SC 2011), counters from one above."""
    out = []
    for block in range(1, n // 4 + 2):
        c, k = [counter[0] + block, *counter[1:]], list(key)
        for _ in range(10):
            left, right = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
            c = [(right >> 64) ^ c[1] ^ k[0], right & MASK, (left >> 64) ^ c[3] ^ k[1],
                 left & MASK]  # fmt: skip
            k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
        out += c
    return out[:n]


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (7, 3), (2**32 - 1, 999)])
def test_order_sorts_the_records_by_philoxs_numbers(seed, epoch):
    raw = philox((seed, epoch), 101)
    expected = sorted(range(101), key=lambda i: raw[i])
    assert batches.order(seed, epoch, 101).tolist() == expected


def test_order_is_these_very_records_for_ever():
    assert batches.ORDER == "philox-argsort-1"
    assert batches.order(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert batches.order(0, 1, 10).tolist() == [5, 3, 7, 8, 2, 4, 1, 0, 6, 9]


@examples
@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(0, 10**4), st.integers(2, 500))
def test_order_is_a_permutation_and_another_one_in_each_epoch_and_seed(seed, epoch, n):
    found = batches.order(seed, epoch, n)
    np.testing.assert_array_equal(np.sort(found), np.arange(n))
    np.testing.assert_array_equal(found, batches.order(seed, epoch, n))
    if n > 50:  # Two of so many are equal once in 10**64 times.
        for other in ((seed, epoch + 1), ((seed + 1) % 2**32, epoch)):
            assert (found != batches.order(*other, n)).any()


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


def test_positions_run_on_from_one_epoch_to_the_next():
    n, positions = 10, np.array([8, 9, 10, 11, 25, 39])
    expected = [batches.order(5, p // n, n)[p % n] for p in positions.tolist()]
    assert (
        batches.indices(positions, n, lambda e: batches.order(5, e, n)).tolist() == expected
    )


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


@pytest.mark.parametrize("threads", [2, 5, 0])
def test_any_number_of_threads_gives_the_same_batches(threads):
    equal(train(Numbered(50), threads=threads), train(Numbered(50), threads=1))


def test_more_threads_than_rows_and_any_prefetch_give_the_same_batches():
    expected = train(Numbered(50), 3, threads=1)
    equal(train(Numbered(50), 3, threads=5), expected)
    for prefetch in (1, 30):
        equal(train(Numbered(50), 3, prefetch=prefetch), expected)


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


def test_ops_that_can_be_one_are_made_one_and_the_pixels_stay():
    class Doubled:
        def __call__(self, image, rng):
            return image * 2

        def after(self, previous):
            return (
                (lambda image, rng: 2 * previous(image, rng)) if previous is one else None
            )

    def one(image, rng):
        return image + 1

    def two(image, rng):
        return image + 2

    for ops, n in [([one, Doubled()], 1), ([Doubled(), one], 2), ([two, Doubled()], 2)]:
        fused = batches.fuse(ops)
        assert len(fused) == n
        assert batches.transform(fused, 5, None) == batches.transform(ops, 5, None)
    assert batches.fuse([]) == []


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (3, 70), (2**32 - 1, 10**12)])
def test_crops_draw_from_a_stream_of_their_own_for_each_position(seed, position):
    pages = [philox((seed, 0), 32, (8 * position, 0, page, 1)) for page in range(3)]
    expected = [(raw >> 11) / 2**53 for page in pages for raw in page]
    alone = batches.example_rng(seed, position)
    among = batches.example_rngs(seed, max(0, position - 3), 9)[min(3, position)]
    for rng in (alone, among):
        assert [rng.random() for _ in expected] == expected


def test_crops_differ_between_epochs_and_positions_and_seeds():
    drawn = [b.image[:, 0, 1] for b in train(Numbered(8), stop=2)]
    rows = {row.tobytes() for part in drawn for row in part}
    assert len(rows) == 16
    other = train(Numbered(8), stop=2, crop_seed=4)
    assert not rows & {row.tobytes() for b in other for row in b.image[:, 0, 1]}


def test_crops_and_order_are_seeded_apart():
    a, b = train(Numbered(50), crop_seed=9), train(Numbered(50))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x.index, y.index)
    a, b = train(Numbered(50), order_seed=9), train(Numbered(50))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x.image[:, 0, 1], y.image[:, 0, 1])


def data_threads():
    return [t for t in threading.enumerate() if t.name.startswith("data")]


def test_an_abandoned_iterator_ends_its_threads():
    made = train_batches(
        Numbered(50), [pixels], order_seed=0, crop_seed=0, batch_size=8, start=0,
        stop=10**9, rows=slice(0, 8), threads=3,
    )  # fmt: skip
    next(made)
    assert data_threads()
    made.close()
    assert not data_threads()


@pytest.mark.parametrize("batch_size", [1, 4, 5, 7, 20, 64])
def test_evaluation_reads_every_record_once_and_masks_the_padding(batch_size):
    rows = slice(0, batch_size)
    made = list(eval_batches(Numbered(20), [pixels], batch_size=batch_size, rows=rows))
    assert len(made) == -(-20 // batch_size)
    assert all(len(batch.mask) == batch_size for batch in made)
    mask = np.concatenate([batch.mask for batch in made])
    index = np.concatenate([batch.index for batch in made])
    labels = np.concatenate([batch.label for batch in made])
    assert index[mask].tolist() == list(range(20))
    assert labels[mask].tolist() == [i % 7 for i in range(20)]
    assert not index[~mask].any()


def test_hosts_evaluate_as_many_batches_each_and_every_record_once():
    parts = [
        list(
            eval_batches(Numbered(9), [pixels], batch_size=8, rows=slice(4 * h, 4 * h + 4))
        )
        for h in range(2)
    ]
    assert [len(part) for part in parts] == [2, 2]
    real = [b.index[b.mask].tolist() for part in parts for b in part]
    assert real == [[0, 1, 2, 3], [8], [4, 5, 6, 7], []]


def test_a_real_dataset_comes_out_as_its_decoded_records(data_dir):
    source = sources.Dataset("digits", str(data_dir)).source("test[:11]", "data.test")
    (batch,) = eval_batches(source, [decode.decode(1)], batch_size=11, rows=slice(0, 11))
    expected = list(source.read(np.arange(11)))
    assert batch.label.tolist() == [label for _, label in expected]
    for row, (png, _) in zip(batch.image, expected, strict=True):
        np.testing.assert_array_equal(row, decode.decode(1)(png, None))


def test_a_record_that_does_not_decode_is_named():
    with pytest.raises(InputError, match=r"^record 0 of the dataset: 4 bytes that are no"):
        list(eval_batches(Numbered(1), [decode.decode()], batch_size=1, rows=slice(0, 1)))
    fails = decode.DecodeError("broken")

    def fail_at_17(image, rng):
        if np.frombuffer(image, np.int32)[0] == 17:
            raise fails
        return pixels(image, rng)

    made = train_batches(
        Numbered(20), [fail_at_17], order_seed=0, crop_seed=0, batch_size=10, start=0,
        stop=2, rows=slice(0, 10), threads=3,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"^record 17 of the dataset: broken"):
        list(made)
    assert not data_threads()


@pytest.mark.parametrize("threads", [1, 4])
def test_images_of_several_sizes_are_refused(threads):
    def grows(image, rng):
        return np.zeros((1 + np.frombuffer(image, np.int32)[0], 2, 3), np.uint8)

    made = eval_batches(
        Numbered(4), [grows], batch_size=4, rows=slice(0, 4), threads=threads
    )
    with pytest.raises(InputError, match=r"several sizes .*such as resize\(224\)"):
        list(made)


@pytest.mark.parametrize(
    ("ops", "image_shape", "expected"),
    [
        ([decode.decode(1)], (8, 8, 1), (8, 8, 1)),
        ([decode.decode()], (8, 9, 1), (8, 9, 3)),
        ([decode.decode(), decode.resize((5, 4))], (None, None, 3), (5, 4, 3)),
        (
            [decode.decode(), decode.resize_short(9), decode.center_crop(7)],
            (None, None, 3),
            (7, 7, 3),
        ),
        ([decode.decode(), decode.random_resized_crop(6)], (None, None, 3), (6, 6, 3)),
        ([decode.decode(), decode.resize_short(16)], (8, 16, 3), (16, 32, 3)),
    ],
)
def test_the_shape_of_a_batch_is_known_without_data(ops, image_shape, expected):
    assert batches.output_shape(ops, image_shape, "data.eval_ops") == expected


@pytest.mark.parametrize("after", [[], [decode.resize_short(32)]])
def test_a_pipeline_that_leaves_several_sizes_is_refused(after):
    ops = [decode.decode(), *after]
    with pytest.raises(InputError) as refused:
        batches.output_shape(ops, (None, None, 3), "data.train_ops")
    said = str(refused.value)
    assert "data.train_ops leaves images of several sizes" in said
    assert "'decode | resize_short(256) | center_crop(224)'" in said


@pytest.mark.parametrize(
    "ops",
    [
        [],
        [decode.resize(8)],
        [decode.center_crop(8), decode.decode()],
        [decode.decode(), decode.decode()],
    ],
)
def test_a_pipeline_that_does_not_begin_with_decode_is_refused(ops):
    with pytest.raises(InputError) as refused:
        batches.output_shape(ops, (8, 8, 3), "data.train_ops")
    assert "data.train_ops must begin with decode" in str(refused.value)


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
