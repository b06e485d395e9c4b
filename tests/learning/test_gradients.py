"""Gradients in pieces, at the worst point near, towards a teacher: against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.special import log_softmax, softmax

from jaxcls.learning import gradients, losses
from jaxcls.learning.gradients import Distillation, Examples
from jaxcls.learning.param_groups import WHOLE
from jaxcls.models import MODELS
from jaxcls.models.layers import batch_norm_groups
from tests.stepping import AllWhole

RNG = np.random.default_rng(3)
B, D, K = 12, 5, 3
PARAMS = {"head": {"kernel": RNG.standard_normal((D, K)), "bias": RNG.standard_normal(K)}}
TRAINS = {"head/kernel": WHOLE, "head/bias": WHOLE}
X = RNG.standard_normal((B, D))
TARGETS = RNG.dirichlet(np.ones(K), B)
TAUGHT = RNG.standard_normal((B, K))
KEY = jax.random.key(0)


def linear(variables, images, train, key):
    """One dense layer; statistics that nothing changes are kept as they are."""
    head = variables["params"]["head"]
    logits = images @ head["kernel"] + head["bias"][None]
    return logits, variables["batch_stats"]


def gradient_of(**options):
    parts = {"apply": linear, "loss": losses.softmax(), "trains": TRAINS} | options
    return gradients.whole(functools.partial(gradients.objective, **parts))


def at(gradient, params=PARAMS, batch_stats=None, taught=None):
    as_float32 = jax.tree.map(jnp.float32, (params, batch_stats or {}, X, TARGETS, taught))
    params, batch_stats, *examples = as_float32
    return jax.jit(gradient)(params, batch_stats, KEY, Examples(*examples))


def by_hand(kernel, bias):
    """(loss, d kernel, d bias) of softmax cross-entropy, in float64."""
    logits = X @ kernel + bias
    loss = -(TARGETS * log_softmax(logits, -1)).sum(-1).mean()
    back = (softmax(logits, -1) - TARGETS) / B
    return loss, X.T @ back, back.sum(0)


def assert_close(found, expected, rtol=1e-5):
    for name, value in expected.items():
        np.testing.assert_allclose(found["head"][name], value, rtol, atol=1e-6)


HEAD = PARAMS["head"]


def test_the_gradient_of_the_whole_batch_is_that_worked_by_hand():
    found, grads = at(gradient_of())
    loss, kernel, bias = by_hand(**HEAD)
    assert float(found.loss) == pytest.approx(loss, rel=1e-5)
    assert float(found.penalty) == 0
    assert_close(grads, {"kernel": kernel, "bias": bias})


@pytest.mark.parametrize("pieces", [1, 2, 3, 4, 12])
def test_pieces_give_the_gradient_loss_and_logits_of_the_whole(pieces):
    whole, grads = at(gradient_of())
    found, summed = at(gradients.accumulated(gradient_of(), pieces))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), summed, grads
    )
    np.testing.assert_allclose(found.logits, whole.logits, rtol=1e-5, atol=1e-6)
    assert float(found.loss) == pytest.approx(float(whole.loss), rel=1e-6)


def test_statistics_that_no_piece_changes_keep_their_bits():
    kept = {"table": np.float32([0.1, -0.0, 1e-40, 3.3e7])}
    found, _ = at(gradients.accumulated(gradient_of(), 3), batch_stats=kept)
    assert np.asarray(found.batch_stats["table"]).tobytes() == kept["table"].tobytes()


def test_each_piece_has_its_own_dropout():
    def noisy(params, batch_stats, key, examples):
        drawn = jax.random.normal(key, examples.targets.shape)
        value = (drawn * params["head"]["bias"][None]).mean()
        return value, gradients.Forward(value, jnp.zeros(()), drawn, batch_stats)

    found, _ = at(gradients.accumulated(gradients.whole(noisy), 4))
    rows = np.asarray(found.logits)
    assert len({rows[m::4].tobytes() for m in range(4)}) == 4


def conv_net(batch_norm, size=32, classes=4):
    """(params, batch_stats, examples, apply) of a small convolutional net."""
    net = MODELS["cnn"](num_classes=classes, widths=(4, 8), dense=8, batch_norm=batch_norm)
    images = jnp.float32(RNG.standard_normal((size, 8, 8, 3)))
    targets = jnp.float32(np.eye(classes)[RNG.integers(0, classes, size)])
    made = net.init(jax.random.key(1), images, False)

    def apply(variables, images, train, key):
        out, updated = net.apply(variables, images, train, mutable=["batch_stats"])
        return out.logits, updated.get("batch_stats", {})

    stats = made.get("batch_stats", {})
    return made["params"], stats, Examples(images, targets, None), apply


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", [False, True])
def test_four_pieces_of_32_equal_128_with_the_groups_of_the_pieces(batch_norm):
    params, stats, examples, apply = conv_net(batch_norm, size=128)
    whole = gradient_of(apply=apply, trains=AllWhole())

    def in_groups(*arguments):
        with batch_norm_groups(4 if batch_norm else 1):
            return whole(*arguments)

    one = jax.jit(in_groups)(params, stats, KEY, examples)
    four = jax.jit(gradients.accumulated(whole, 4))(params, stats, KEY, examples)
    for a, b in zip(jax.tree.leaves(four), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_pieces_are_the_same_on_one_and_on_eight_devices():
    params, stats, examples, apply = conv_net(True, size=64)
    whole = gradient_of(apply=apply, trains=AllWhole())
    pieces = jax.jit(gradients.accumulated(whole, 4))
    one = pieces(params, stats, KEY, examples)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    eight = pieces(params, stats, KEY, jax.device_put(examples, rows))
    for a, b in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_sam_takes_the_gradient_where_the_first_one_leads():
    rho = 0.7
    loss, kernel, bias = by_hand(**HEAD)
    reach = rho / np.sqrt((kernel**2).sum() + (bias**2).sum())
    _, *worst = by_hand(HEAD["kernel"] + reach * kernel, HEAD["bias"] + reach * bias)
    found, grads = at(gradients.sharpness_aware(gradient_of(), rho))
    assert float(found.loss) == pytest.approx(loss, rel=1e-5)
    assert_close(grads, dict(zip(("kernel", "bias"), worst, strict=True)))
    assert np.abs(worst[0] - kernel).max() > 0.01


def test_sam_of_pieces_perturbs_by_the_whole_batch():
    whole = at(gradients.sharpness_aware(gradient_of(), 0.3))[1]
    pieces = gradients.accumulated(gradient_of(), 4)
    assert_close(
        at(gradients.sharpness_aware(pieces, 0.3))[1],
        {name: np.asarray(value) for name, value in whole["head"].items()},
    )


def test_penalties_add_their_gradients_where_the_mask_says():
    mask = {"head": {"kernel": True, "bias": False}}
    penalty = functools.partial(losses.penalty, mask=mask, l1=0.3, l2=0.05)
    found, grads = at(gradient_of(penalty=penalty))
    loss, kernel, bias = by_hand(**HEAD)
    w = HEAD["kernel"]
    assert float(found.loss) == pytest.approx(loss, rel=1e-5)
    expected = 0.3 * np.abs(w).sum() + 0.05 * (w**2).sum()
    assert float(found.penalty) == pytest.approx(expected, rel=1e-5)
    assert_close(grads, {"kernel": kernel + 0.3 * np.sign(w) + 0.1 * w, "bias": bias})


def test_a_teacher_pulls_by_its_weight_and_temperature():
    distillation = Distillation(teach=None, weight=0.25, temperature=2.0)
    found, grads = at(gradient_of(distillation=distillation), taught=TAUGHT)
    logits = X @ HEAD["kernel"] + HEAD["bias"]
    soft = softmax(TAUGHT / 2, -1)
    apart = (soft * (np.log(soft) - log_softmax(logits / 2, -1))).sum(-1).mean()
    hard, _, bias = by_hand(**HEAD)
    assert float(found.loss) == pytest.approx(0.75 * hard + 0.25 * 4 * apart, rel=1e-5)
    pulled = 2.0 * (softmax(logits / 2, -1) - soft).sum(0) / B
    assert_close(grads, {"bias": 0.75 * bias + 0.25 * pulled})


def scaled(variables, images, train, key):
    """`linear` with noise of its key, times statistics that move by its logits."""
    scale = variables["batch_stats"]["scale"]
    logits, _ = linear(variables, images, train, key)
    logits = scale * (logits + jax.random.normal(key, logits.shape))
    return logits, {"scale": scale + logits[:, 0].mean()}


def test_sam_has_the_dropout_and_the_statistics_of_one_step():
    rho, scale = 0.7, 1.5
    noise = np.asarray(jax.random.normal(KEY, (B, K)), np.float64)

    def found_at(kernel, bias):
        logits = scale * (X @ kernel + bias + noise)
        back = scale * (softmax(logits, -1) - TARGETS) / B
        return logits, X.T @ back, back.sum(0)

    logits, kernel, bias = found_at(**HEAD)
    reach = rho / np.sqrt((kernel**2).sum() + (bias**2).sum())
    _, *worst = found_at(HEAD["kernel"] + reach * kernel, HEAD["bias"] + reach * bias)
    sam = gradients.sharpness_aware(gradient_of(apply=scaled), rho)
    found, grads = at(sam, batch_stats={"scale": scale})
    assert_close(grads, dict(zip(("kernel", "bias"), worst, strict=True)), rtol=1e-4)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-5)
    moved = float(found.batch_stats["scale"])
    assert moved == pytest.approx(scale + logits[:, 0].mean(), rel=1e-5)


def test_pieces_move_the_statistics_by_their_mean():
    noise = [jax.random.normal(jax.random.fold_in(KEY, m), (B // 3, K)) for m in range(3)]
    pieces = gradients.accumulated(gradient_of(apply=scaled), 3)
    found, _ = at(pieces, batch_stats={"scale": 1.5})
    # Piece m is rows m, m + 3, ...; each starts from the statistics before the step.
    logits = np.zeros((B, K))
    for m in range(3):
        own = X[m::3] @ HEAD["kernel"] + HEAD["bias"]
        logits[m::3] = 1.5 * (own + np.asarray(noise[m]))
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-5)
    moved = float(found.batch_stats["scale"])
    assert moved == pytest.approx(1.5 + logits[:, 0].mean(), rel=1e-5)
