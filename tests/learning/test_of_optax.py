"""Optimizers by optax's own names: the same steps, and those that are refused."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcls import experiment
from jaxcls.config import calls
from jaxcls.errors import InputError
from jaxcls.learning import of_optax
from jaxcls.learning.optimizers import decay_scales, decay_weights
from tests.settings import BARE
from tests.stepping import at_rate

RATES = jnp.float32([0.3, 0.1, 0.05, 0.2])
RNG = np.random.default_rng(0)
START = {"w": jnp.float32(RNG.standard_normal((5, 4)))}
GRADS = [{"w": jnp.float32(RNG.standard_normal((5, 4)))} for _ in RATES]


def made(text, weight_decay=0.0):
    (call,) = calls.parse(text, "optim.name")
    table = {call.name: of_optax.optimizer(call.name)}
    decay = decay_weights(weight_decay, decay_scales(".", {}))
    return calls.build_one(text, table, "optim.name", decay=decay)


def trained(optimizer, **more):
    params, state = START, optimizer.init(START)
    for rate, grads in zip(RATES, GRADS, strict=True):
        given = {"lr": rate} if more.get("rated") else {}
        updates, state = optimizer.update(grads, state, params, **given)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["w"])


@pytest.mark.parametrize(
    ("text", "theirs"),
    [
        ("optax.adabelief(b1=0.95)", lambda rate: optax.adabelief(rate, b1=0.95)),
        ("optax.yogi", optax.yogi),
        ("optax.sgd(momentum=0.9)", lambda rate: optax.sgd(rate, momentum=0.9)),
        ("optax.adamw(weight_decay=0.1)", lambda rate: optax.adamw(rate, weight_decay=0.1)),
        ("optax.ademamix", optax.contrib.ademamix),
    ],
)
def test_steps_under_a_schedule_are_optaxs(text, theirs):
    ours = trained(optax.chain(made(text), at_rate()), rated=True)
    expected = trained(theirs(lambda count: RATES[count]))
    assert np.abs(expected - START["w"]).max() > 0.05
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_our_decay_is_decoupled():
    ours = trained(optax.chain(made("optax.adabelief", 0.3), at_rate()), rated=True)
    expected = trained(
        optax.chain(
            optax.scale_by_belief(),
            optax.add_decayed_weights(0.3),
            optax.scale_by_learning_rate(lambda count: RATES[count]),
        )
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optax.adam_belief", "'optax.adam_belief' is no optimizer of optax with a learn"),
        ("optax.chain", "'optax.chain' is no optimizer of optax with a learning_rate"),
        (
            "optax.fromage",
            "optax.fromage: its updates are not proportional to learning_rate",
        ),
        ("optax.lars", "optax.lars: its updates are not proportional to learning_rate"),
        ("optax.schedule_free_sgd", "optax.schedule_free_sgd: "),
        ("optax.adam(b3=1.0)", r"optax.adam does not take these arguments .*b3"),
    ],
)
def test_what_has_no_rate_of_its_own_to_scale_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        made(text)


def test_two_weight_decays_are_refused():
    made("optax.adamw(weight_decay=0.0)", 0.1)
    with pytest.raises(InputError, match=r"weight_decay=0.0001 is its own, beside optim"):
        made("optax.adamw", 0.1)


def test_a_run_takes_it(tiny):
    exp = experiment.build(tiny(**BARE | {"optim.name": "optax.adabelief"}))
    _, record = exp.programs.train_step(exp.init(), next(exp.train_batches()))
    assert bool(record["finite"])
    with pytest.raises(InputError, match=r"unknown model.name 'optax.adabelief'"):
        _ = experiment.build(tiny(**{"model.name": "optax.adabelief"})).recipe.module


def loss_of(text):
    (call,) = calls.parse(text, "loss.name")
    return calls.build_one(text, {call.name: of_optax.loss(call.name)}, "loss.name")


@pytest.mark.parametrize(
    ("text", "theirs", "link"),
    [
        ("optax.softmax_cross_entropy", optax.softmax_cross_entropy, "softmax"),
        ("optax.safe_softmax_cross_entropy", optax.safe_softmax_cross_entropy, "softmax"),
        (
            "optax.poly_loss_cross_entropy(epsilon=0.5)",
            lambda x, y: optax.losses.poly_loss_cross_entropy(x, y, epsilon=0.5),
            "softmax",
        ),
        (
            "optax.sigmoid_binary_cross_entropy",
            lambda x, y: optax.sigmoid_binary_cross_entropy(x, y).mean(-1),
            "sigmoid",
        ),
        (
            "optax.sigmoid_focal_loss(alpha=0.3, reduce='sum')",
            lambda x, y: optax.sigmoid_focal_loss(x, y, alpha=0.3).sum(-1),
            "sigmoid",
        ),
    ],
)
def test_a_loss_is_optaxs_one_an_example(text, theirs, link):
    logits = jnp.float32(RNG.standard_normal((6, 4)) * 3)
    targets = jnp.float32(RNG.dirichlet(np.ones(4), 6))
    loss = loss_of(text)
    assert loss(logits, targets).shape == (6,)
    np.testing.assert_allclose(loss(logits, targets), theirs(logits, targets), rtol=1e-6)
    assert loss.link == link


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optax.softmax_crossentropy", "is no loss of optax with .logits, labels.; try"),
        ("optax.huber_loss", "is no loss of optax with"),
        ("optax.ctc_loss", "is no loss of optax with"),
        ("optax.softmax_cross_entropy_with_integer_labels", "takes no distributions for"),
        ("optax.sparsemax_loss", r"it gives \[3, 5\] for logits \[3, 5\], and must give"),
        ("optax.ranking_softmax_loss", r"it gives \[\] for logits \[3, 5\]"),
        ("optax.poly_loss_cross_entropy(reduce='sum')", "does not take these arguments"),
        ("optax.sigmoid_focal_loss(reduce='max')", "unknown reduce of optax.sigmoid_focal"),
        ("optax.softmax_cross_entropy(axis=0)", "does not take these arguments"),
    ],
)
def test_what_is_no_loss_of_logits_and_distributions_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        loss_of(text)


def test_a_run_takes_a_loss_and_its_probabilities_are_of_its_link(tiny):
    given = {**BARE, "loss.name": "optax.sigmoid_binary_cross_entropy"}
    ours, theirs = (
        experiment.build(tiny(**{**given, "loss.name": name}))
        for name in ("sigmoid", given["loss.name"])
    )
    batch = next(ours.train_batches())
    steps = [exp.programs.train_step(exp.init(), batch)[1] for exp in (ours, theirs)]
    np.testing.assert_allclose(steps[0]["loss"], steps[1]["loss"], rtol=1e-6)
    assert theirs.recipe.link == ours.recipe.link == "sigmoid"
    assert experiment.build(tiny()).recipe.link == "softmax"
