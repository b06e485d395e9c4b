"""The step against NumPy, on a linear model; what freezes it; what counts as best."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.special import log_softmax, softmax

from jaxcls.augment import AUGMENTATIONS, MIXES, NORMALIZATIONS, chain, row_keys
from jaxcls.learning import losses, metrics, step
from jaxcls.learning.schedules import SCHEDULES, Span
from jaxcls.learning.wrappers import WRAPPERS
from tests import stepping
from tests.stepping import SIDE, B, K, optimizer_of

RNG = np.random.default_rng(0)
BATCHES = stepping.batches(RNG, 4)
SPAN = Span(first=0, last=10, steps=float)
START = RNG.standard_normal((SIDE * SIDE, K)).astype(np.float32)


def linear(variables, images, train, key):
    """logits = pixels @ kernel; batch_stats hold the images that came."""
    x = images.reshape(images.shape[0], -1)
    seen = {"seen": images} if train else variables["batch_stats"]
    return x @ variables["params"]["kernel"], seen


SEEN = np.zeros((B, SIDE, SIDE, 1), np.float32)
VARIABLES = {"params": {"kernel": START}, "batch_stats": {"seen": SEEN}}


def made(*, apply=linear, **changes):
    """(state at step 0, jitted train_step(state, batch)) of the linear model."""
    return stepping.made(VARIABLES, apply, **changes)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(without_keys(tree))]


def without_keys(state):
    return state._replace(key={k: jax.random.key_data(v) for k, v in state.key.items()})


def test_updates_and_their_records_are_those_worked_by_hand():
    peak, decay, momentum, smoothing, ema = 0.5, 0.1, 0.9, 0.3, 0.75
    optimizer = optimizer_of("sgd", decay, momentum=momentum, nesterov=False)
    state, train_step = made(
        ema=ema,
        optimizer=optimizer,
        smoothing=smoothing,
        schedule=SCHEDULES["cosine"](peak, SPAN),
    )
    w, trace, average = START.astype(np.float64), 0.0, START.astype(np.float64)
    seen = 0.0
    for i, batch in enumerate(BATCHES):
        x = batch.image.reshape(B, -1) / 255
        targets = np.eye(K)[batch.label] * (1 - smoothing) + smoothing / K
        logits = x @ w
        loss = -(targets * log_softmax(logits, -1)).sum(-1).mean()
        grad = x.T @ (softmax(logits, -1) - targets) / B
        lr = peak * (1 + np.cos(np.pi * i / 10)) / 2
        trace = momentum * trace + grad + decay * w
        w = w - lr * trace
        average = ema * average + (1 - ema) * w

        state, record = train_step(state, batch)
        expected = {
            "loss": loss,
            "top1": (logits.argmax(-1) == batch.label).mean(),
            "lr": lr,
            "grad_norm": np.sqrt((grad**2).sum()),
            "finite": 1,
        }
        assert set(record) == set(expected)
        for name, value in expected.items():
            assert float(record[name]) == pytest.approx(value, rel=1e-5), name
        assert int(state.step) == i + 1
        np.testing.assert_allclose(state.params["kernel"], w, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            state.ema["params"]["kernel"], average, rtol=1e-5, atol=1e-6
        )
        seen = ema * seen + (1 - ema) * batch.image / 255
        np.testing.assert_allclose(state.ema["batch_stats"]["seen"], seen, rtol=1e-5)


def test_the_first_state_shares_no_buffer_so_it_can_be_donated():
    state, _ = made(ema=0.9)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(without_keys(state))]
    assert len(set(pointers)) == len(pointers)


def poisoned(images):
    """255 becomes NaN; else as unit()."""
    return jnp.where(images == 255, jnp.nan, images / 255.0)


def rooted(variables, images, train, key):
    """A loss that is finite and a gradient that is not, where the first pixel is 0."""
    root = jnp.sqrt(jnp.abs(images[0, 0, 0, 0] * variables["params"]["kernel"][0, 0]))
    logits, seen = linear(variables, images, train, key)
    return logits + root, seen


def with_first_pixel(batch, value):
    image = batch.image.copy()
    image[image == 255] = 254
    image[0, 0, 0, 0] = value
    return batch._replace(image=image)


@pytest.mark.parametrize(
    ("changes", "pixel", "finite_loss"),
    [({"normalize": poisoned}, 255, False), ({"apply": rooted}, 0, True)],
)
def test_a_bad_loss_or_gradient_freezes_the_state_before_it_for_good(
    changes, pixel, finite_loss
):
    optimizer = optimizer_of("adamw", 0.1)
    state, train_step = made(ema=0.9, optimizer=optimizer, **changes)
    good = [with_first_pixel(batch, 9) for batch in BATCHES]
    for batch in good[:2]:
        state, record = train_step(state, batch)
        assert bool(record["finite"])
    frozen, record = train_step(state, with_first_pixel(BATCHES[2], pixel))
    assert bool(jnp.isfinite(record["loss"])) == finite_loss
    assert not finite_loss or not jnp.isfinite(record["grad_norm"])
    assert not bool(record["finite"])
    assert int(frozen.bad_step) == int(frozen.step) == 2
    assert bits(frozen._replace(bad_step=state.bad_step)) == bits(state)
    for batch in good:
        later, record = train_step(frozen, batch)
        assert bits(later) == bits(frozen)
        assert int(later.bad_step) == 2


def test_an_update_that_overflows_freezes_the_state_too():
    state, train_step = made(schedule=lambda count: jnp.float32(3e38) * 10)
    frozen, record = train_step(state, BATCHES[0])
    assert np.isfinite([record["loss"], record["grad_norm"]]).all()
    assert int(frozen.bad_step) == 0
    assert bits(frozen._replace(bad_step=state.bad_step)) == bits(state)


def noisy(variables, images, train, key):
    """What dropout sees: the images times noise that depends on its key."""
    if train:
        images = images * jax.random.uniform(key, images.shape)
    return linear(variables, images, train, None)


RANDOM = {
    "augment": chain([AUGMENTATIONS["random_crop"](1), AUGMENTATIONS["flip"]()]),
    "mix": MIXES["mixup"](0.5),
    "apply": noisy,
}


@pytest.mark.parametrize(
    ("part", "stream", "other"),
    [
        ("augment", "augment", "dropout"),
        ("mix", "augment", "dropout"),
        ("apply", "dropout", "augment"),
    ],
)
def test_randomness_is_a_function_of_its_own_key_and_the_step(part, stream, other):
    state, train_step = made(**{part: RANDOM[part]})

    def seen(**changes):
        start = state._replace(**changes)
        return np.asarray(train_step(start, BATCHES[0])[0].batch_stats["seen"])

    new = jax.random.key(99)
    np.testing.assert_array_equal(seen(), seen(key={**state.key, other: new}))
    assert (seen() != seen(key={**state.key, stream: new})).any()
    assert (seen() != seen(step=state.step + 1)).any()


def test_a_row_is_augmented_alike_whatever_the_other_rows_are():
    state, train_step = made(augment=RANDOM["augment"])
    others = BATCHES[0]._replace(image=BATCHES[1].image.copy())
    others.image[3] = BATCHES[0].image[3]
    a, b = (
        train_step(state, batch)[0].batch_stats["seen"] for batch in (BATCHES[0], others)
    )
    np.testing.assert_array_equal(a[3], b[3])
    assert (np.asarray(a) != b).any()


def test_inputs_are_told_their_rows_and_how_much_of_the_run_is_done():
    seen = {}

    def augment(rows, images):
        seen["rows"] = rows
        return images

    def mix(key, share, images, targets):
        seen["mix"] = key, share
        return images, targets

    parts = {"augment": augment, "normalize": NORMALIZATIONS["unit"](), "mix": mix}
    index, epoch = np.arange(B, dtype=np.int32) + 50, np.int32([3, 4] * 4)
    told = BATCHES[0]._replace(index=index, epoch=epoch)
    key, now, labels = jax.random.key(1), jnp.int32(3), {"num_classes": K, "smoothing": 0.0}
    step.inputs(key, now, told, **parts, **labels, steps=8)
    rows, (key, share) = seen["rows"], seen["mix"]
    np.testing.assert_array_equal(rows.example, told.index)
    np.testing.assert_array_equal(rows.epoch, told.epoch)
    assert rows.run == jax.random.key(1)
    assert float(rows.share) == float(share) == 3 / 8
    # No row's chance follows from that of the mix.
    assert (jax.random.key_data(row_keys(key, B)) != jax.random.key_data(rows.key)).all()


def test_the_optimizer_is_told_what_is_done_with_its_update():
    def update(updates, state, params=None, *, lr, step, share):
        told = {"lr": lr, "step": jnp.float32(step), "share": share}
        return jax.tree.map(jnp.zeros_like, updates), told

    start = dict.fromkeys(("lr", "step", "share"), jnp.zeros(()))
    spy = optax.GradientTransformationExtraArgs(lambda params: start, update)
    state, train_step = made(optimizer=spy)
    for count, share in ((0, 0.1), (4, 0.5), (9, 1.0)):
        new, _ = train_step(state._replace(step=jnp.int32(count)), BATCHES[0])
        told = {name: float(value) for name, value in new.opt_state.items()}
        assert told == {"lr": 0.5, "step": count, "share": np.float32(share)}


def test_what_the_optimizer_averages_goes_with_the_running_statistics():
    plain = optimizer_of("sgd", momentum=0.0)
    state, train_step = made(ema=0.9, optimizer=WRAPPERS["schedule_free"](plain, b1=0.75))
    points = [START.astype(np.float64)]
    for batch in BATCHES:
        before = np.asarray(state.params["kernel"], np.float64)
        x = batch.image.reshape(B, -1) / 255
        grad = x.T @ (softmax(x @ before, -1) - np.eye(K)[batch.label]) / B
        points.append(points[-1] - 0.5 * grad)
        state, _ = train_step(state, batch)
        # At a constant rate x is the mean of all z.
        mean = np.mean(points[1:], axis=0)
        ema = state.ema["params"]["kernel"]
        np.testing.assert_allclose(ema, mean, rtol=1e-5, atol=1e-6)
        y = 0.75 * mean + 0.25 * points[-1]
        np.testing.assert_allclose(state.params["kernel"], y, rtol=1e-5, atol=1e-6)
        seen = state.ema["batch_stats"]["seen"]
        np.testing.assert_allclose(seen, batch.image / 255, rtol=1e-6)


@pytest.mark.slow
def test_a_step_over_8_devices_is_that_over_1_but_for_rounding():
    state, train_step = made(ema=0.9, smoothing=0.1, **RANDOM)
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    rows = NamedSharding(mesh, PartitionSpec("batch"))
    spread = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    for batch in BATCHES[:2]:
        state, one = train_step(state, batch)
        spread, eight = train_step(spread, jax.device_put(batch, rows))
    assert len(spread.params["kernel"].sharding.device_set) == 8
    pairs = zip(
        jax.tree.leaves(without_keys(state)),
        jax.tree.leaves(without_keys(spread)),
        strict=True,
    )
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert float(one["loss"]) == pytest.approx(float(eight["loss"]), rel=1e-5)


def test_evaluation_gives_each_examples_scores_without_smoothing():
    model, unit = step.Model(None, linear), NORMALIZATIONS["unit"]()
    evaluate = functools.partial(
        step.eval_step,
        model=model,
        loss=losses.softmax(),
        num_classes=K,
        normalize=unit,
        metrics=[metrics.top1(), metrics.topk(2)],
    )
    variables = {"params": {"kernel": jnp.asarray(START)}, "batch_stats": {}}
    batch = jax.tree.map(jnp.asarray, BATCHES[0])
    logits = BATCHES[0].image.reshape(B, -1) / 255 @ START
    label = BATCHES[0].label
    got = evaluate(variables, batch)
    assert set(got) == {"loss", "top1", "top2", "predicted"}
    assert got["predicted"].dtype == jnp.int32
    np.testing.assert_array_equal(got["predicted"], logits.argmax(-1))
    expected = -log_softmax(logits, -1)[np.arange(B), label]
    np.testing.assert_allclose(got["loss"], expected, rtol=1e-5)
    np.testing.assert_array_equal(got["top1"], logits.argmax(-1) == label)
    np.testing.assert_array_equal(got["top2"], logits.argmin(-1) != label)

    found = step.logits_step(variables, batch.image, model=model, normalize=unit)
    np.testing.assert_allclose(found, logits, rtol=1e-5)


@pytest.mark.parametrize(
    ("decay", "every", "warmup"), [(0.75, 3, False), (0.2, 1, True), (0.2, 2, True)]
)
def test_the_average_is_made_every_so_many_updates_and_may_warm_up(decay, every, warmup):
    state, train_step = made(ema=step.Average(decay, every, warmup))
    average = START.astype(np.float64)
    for i, batch in enumerate(BATCHES, start=1):
        state, _ = train_step(state, batch)
        if i % every == 0:
            t = i // every
            now = min(decay, (1 + t) / (10 + t)) if warmup else decay
            average = now * average + (1 - now) * np.asarray(state.params["kernel"])
        np.testing.assert_allclose(
            state.ema["params"]["kernel"], average, rtol=1e-5, atol=1e-6
        )


def half_of_squares(params):
    return 0.5 * jnp.square(params["kernel"]).sum()


def test_a_penalty_is_recorded_beside_the_loss():
    (state, plain), (_, train_step) = made(), made(penalty=half_of_squares)
    _, without = plain(state, BATCHES[0])
    new, record = train_step(state, BATCHES[0])
    assert float(record["loss"]) == float(without["loss"])
    expected = 0.5 * (START.astype(np.float64) ** 2).sum()
    assert float(record["penalty"]) == pytest.approx(expected, rel=1e-6)
    moved = np.asarray(plain(state, BATCHES[0])[0].params["kernel"]) - 0.5 * START
    np.testing.assert_allclose(new.params["kernel"], moved, rtol=1e-5, atol=1e-6)


def test_a_plateau_reduces_the_rate_and_waits_anew():
    state, train_step = made(plateau=True)
    record = jax.jit(
        lambda state, value: step.record_evaluation(
            state,
            value,
            higher=True,
            min_delta=0.0,
            patience=0,
            plateau_patience=2,
            plateau_factor=0.5,
        )
    )
    rates = []
    for value in (0.3, 0.3, 0.2, 0.1, 0.1, 0.9, 0.8, np.nan):
        state = record(state, value)
        rates.append(float(train_step(state, BATCHES[0])[1]["lr"]))
    assert rates == [0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.125, 0.0625]
    assert not bool(state.halted)


def test_a_plateau_scales_the_very_update():
    state, train_step = made(plateau=True)
    quarter = state.plateau._replace(scale=jnp.float32(0.25))
    whole, less = (
        np.asarray(train_step(start, BATCHES[0])[0].params["kernel"]) - START
        for start in (state, state._replace(plateau=quarter))
    )
    np.testing.assert_allclose(less, 0.25 * whole, rtol=1e-4, atol=1e-6)


def history(values, *, higher=True, min_delta=0.0, patience=0):
    """(best values, best steps, patience, halted) after evaluations at steps 10, 20..."""
    state, _ = made(higher=higher)
    assert (float(state.best.value), int(state.best.step)) == (
        -np.inf if higher else np.inf,
        -1,
    )
    record = jax.jit(
        lambda state, value: step.record_evaluation(
            state, value, higher=higher, min_delta=min_delta, patience=patience
        )
    )
    told = []
    for i, value in enumerate(values, start=1):
        state = record(state._replace(step=jnp.int32(10 * i)), value)
        told.append([*state.best, state.patience, state.halted])
    return [[x.item() for x in column] for column in zip(*told, strict=True)]


@pytest.mark.parametrize(("higher", "sign"), [(True, 1), (False, -1)])
@pytest.mark.parametrize(
    ("values", "options", "best", "steps", "waited"),
    [
        # The first of equal values is best.
        (
            [0.5, 0.25, 0.75, 0.75, 0.5],
            {},
            [0.5, 0.5, 0.75, 0.75, 0.75],
            [10, 10, 30, 30, 30],
            [0, 1, 0, 1, 2],
        ),
        # Small gains are best, and add up until they pass min_delta.
        (
            [0.5, 0.5625, 0.625, 0.6875, 0.75],
            {"min_delta": 0.125, "patience": 9},
            [0.5, 0.5625, 0.625, 0.6875, 0.75],
            [10, 20, 30, 40, 50],
            [0, 1, 2, 0, 1],
        ),
    ],
)
def test_the_best_value_and_the_gains(higher, sign, values, options, best, steps, waited):
    told = history([sign * v for v in values], higher=higher, **options)
    assert told == [[sign * v for v in best], steps, waited, [False] * 5]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("higher", [True, False])
def test_a_value_that_is_not_finite_is_never_best_and_counts_as_waiting(bad, higher):
    best, steps, waited, _ = history([bad, 0.5, bad], higher=higher)
    assert (best[1:], steps, waited) == ([0.5, 0.5], [-1, 20, 20], [1, 0, 1])


def test_patience_halts_after_so_many_evaluations_without_gain_and_stays_halted():
    _, _, waited, halted = history([0.5, 0.4, 0.6, 0.6, 0.5, 0.9], patience=2)
    assert waited == [0, 1, 0, 1, 2, 0]
    assert halted == [False, False, False, False, True, True]
