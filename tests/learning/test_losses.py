"""Losses against SciPy, arithmetic by hand, scikit-learn and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn.utils.class_weight import compute_class_weight

from jaxcls.config import calls
from jaxcls.errors import InputError
from jaxcls.learning.losses import LOSSES, distill, parse_weights, penalty, smooth, weighted

RNG = np.random.default_rng(0)
LOGITS = 10 * RNG.standard_normal((6, 4)).astype(np.float32)
SOFT = RNG.dirichlet(np.ones(4), 6).astype(np.float32)
LABELS = np.array([2, 0, 3, 3, 1, 2])
HARD = np.eye(4, dtype=np.float32)[LABELS]
LOG_P = log_softmax(LOGITS.astype(np.float64), axis=-1)
P = np.exp(LOG_P)
EXTREME = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [1e4, 1e4, -1e4], [0, 0, 0]])


def loss(text, logits=LOGITS, targets=SOFT):
    function = calls.build_one(text, LOSSES, "loss.name")
    got = function(jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32))
    assert got.shape == (len(logits),)
    assert got.dtype == jnp.float32
    return np.asarray(got)


@pytest.mark.parametrize("targets", [SOFT, HARD])
def test_softmax_and_sigmoid_are_cross_entropies(targets):
    got = loss("softmax", targets=targets)
    np.testing.assert_allclose(got, -(targets * LOG_P).sum(-1), rtol=1e-5, atol=1e-6)
    p = expit(LOGITS.astype(np.float64))
    each = -targets * np.log(p) - (1 - targets) * np.log1p(-p)
    np.testing.assert_allclose(loss("sigmoid", targets=targets), each.mean(-1), rtol=1e-4)
    summed = loss("sigmoid(reduce='sum')", targets=targets)
    np.testing.assert_allclose(summed, each.sum(-1), rtol=1e-4)


def test_targets_above_the_threshold_count_as_1_and_others_as_0():
    targets = [[0.2, 0.21, 0.59, 0.0]]
    cut = loss("sigmoid(0.2)", LOGITS[:1], targets)
    np.testing.assert_array_equal(cut, loss("sigmoid", LOGITS[:1], [[0, 1, 1, 0]]))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_its_definition(gamma):
    expected = -(SOFT * (1 - P) ** gamma * LOG_P).sum(-1)
    np.testing.assert_allclose(loss(f"focal({gamma})"), expected, rtol=1e-4)


@pytest.mark.parametrize("epsilon", [-1.0, 1.0, 2.0])
def test_poly_is_the_cross_entropy_and_epsilon_times_what_is_not_sure(epsilon):
    expected = -(SOFT * LOG_P).sum(-1) + epsilon * (SOFT * (1 - P)).sum(-1)
    np.testing.assert_allclose(loss(f"poly({epsilon})"), expected, rtol=1e-4)


ALL = ["softmax", "sigmoid(0.2, 'sum')", "focal", "focal(0.5)", "focal(0)", "poly"]


@pytest.mark.parametrize("text", ALL)
def test_losses_and_gradients_of_huge_logits_are_finite(text):
    function = calls.build_one(text, LOSSES, "loss.name")
    targets = smooth(jnp.array([0, 0, 1, 2]), 3, 0.1)
    for hot in (targets, jnp.round(targets)):
        total = jax.value_and_grad(lambda logits, hot=hot: function(logits, hot).sum())
        value, slope = total(jnp.asarray(EXTREME, jnp.float32))
        assert np.isfinite(value)
        assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    ("smoothing", "expected"),
    [
        (0.0, [[0, 0, 1, 0], [1, 0, 0, 0]]),
        (0.1, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]),
    ],
)
def test_smoothing_spreads_its_share_over_all_classes(smoothing, expected):
    targets = smooth(jnp.asarray([2, 0]), 4, smoothing)
    assert targets.dtype == jnp.float32
    np.testing.assert_allclose(targets, expected, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_the_divergence_from_the_teacher_times_its_temperature_squared(
    temperature,
):
    teacher_logits = 10 * RNG.standard_normal((6, 4)).astype(np.float32)
    teacher = softmax(teacher_logits.astype(np.float64) / temperature, axis=-1)
    student = softmax(LOGITS.astype(np.float64) / temperature, axis=-1)
    expected = temperature**2 * (teacher * np.log(teacher / student)).sum(-1)
    got = distill(jnp.asarray(LOGITS), jnp.asarray(teacher_logits), temperature)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_distillation_is_0_from_itself_and_finite_from_a_sure_teacher():
    extreme = jnp.asarray(EXTREME, jnp.float32)
    np.testing.assert_array_equal(distill(extreme, extreme, 2.0), np.zeros(4))
    total = jax.value_and_grad(lambda x: distill(x, extreme[::-1], 2.0).sum())
    value, slope = total(extreme)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


def test_an_example_weighs_what_its_classes_do_by_their_shares():
    weights = np.array([0.5, 1.0, 2.0, 0.0], np.float32)
    function = weighted(LOSSES["softmax"](), weights)
    expected = -(SOFT * LOG_P).sum(-1) * (SOFT @ weights)
    np.testing.assert_allclose(function(LOGITS, SOFT), expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_balanced_classes_pull_equally_whatever_the_smoothing(smoothing):
    # 99 to 1, and images that are alike: the best answer is one half for each.
    labels = np.repeat([0, 1], [990, 10])
    weights = parse_weights("balanced", ("a", "b"), lambda: np.array([990, 10]))
    function = weighted(LOSSES["softmax"](), weights, smoothing)
    targets = smooth(jnp.asarray(labels), 2, smoothing)
    slope = jax.grad(lambda x: function(jnp.tile(x, (1000, 1)), targets).mean())
    np.testing.assert_allclose(slope(jnp.zeros(2)), 0, atol=1e-6)
    assert np.abs(slope(jnp.array([0.0, 1.0]))).min() > 0.1


def test_a_mix_of_smoothed_labels_weighs_what_its_labels_do_by_their_shares():
    weights, share = np.array([0.5, 1.0, 2.0, 0.0], np.float32), 0.3
    one, other = (smooth(jnp.array(each), 4, 0.2) for each in ([0, 1, 2], [2, 3, 2]))
    mixed = share * one + (1 - share) * other
    logits = jnp.asarray(LOGITS[:3])
    plain = LOSSES["softmax"]()(logits, mixed)
    found = weighted(LOSSES["softmax"](), weights, 0.2)(logits, mixed) / plain
    first, second = weights[[0, 1, 2]], weights[[2, 3, 2]]
    np.testing.assert_allclose(found, share * first + (1 - share) * second, rtol=1e-5)


NAMES = ("cat", "dog", "big, old horse")


def refuse_counts():
    raise AssertionError("the counts of examples were asked for")


def weights_of(text, counts=refuse_counts, names=NAMES):
    got = parse_weights(text, names, counts)
    assert got.dtype == np.float32
    assert got.shape == (len(names),)
    return got.tolist()


def test_balanced_weights_are_scikit_learns():
    labels = RNG.choice(4, 500, p=[0.1, 0.2, 0.3, 0.4])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    got = parse_weights(" balanced ", "abcd", lambda: np.bincount(labels))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(got[labels].mean(), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,1e1,.5", [0, 10, 0.5]),
        ("dog: 0.5, cat: 2", [2, 0.5, 1]),
        (" dog :0.5 ,'big, old horse' : 3,", [1, 0.5, 3]),
        ('"big, old horse": 0', [1, 1, 0]),
    ],
)
def test_weights_are_numbers_in_order_or_by_name(text, expected):
    assert weights_of(text) == expected


def test_a_class_may_have_a_number_a_colon_or_a_quote_in_its_name():
    names = ("3", "a: b", "cat's")
    assert weights_of("""3: 2, a: b: 4, "cat's": 5""", names=names) == [2, 4, 5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1, 2", "has 2 numbers for 3 classes"),
        ("1, x, 3", "has 'x' for a weight"),
        ("1, -2, 3", "has '-2' for a weight, which must be finite and at least 0"),
        ("1, nan, 3", "has 'nan' for a weight, which must be finite"),
        ("cat: 1e39", "has '1e39' for a weight, which must be finite"),
        ("cta: 2", "names the unknown class 'cta' (did you mean 'cat'?)"),
        ("cat: 2, cat: 3", "names 'cat' twice"),
        ("cat: 2, dog", "is not of 'name: weight' at 'dog'"),
        ("cat: 2; dog: 3", "names the unknown class 'cat: 2; dog'"),
        (": 3", "is not of 'name: weight' at ': 3'"),
        ("0, 0, 0", "weighs every class 0"),
    ],
)
def test_weights_that_do_not_fit_the_classes_are_refused_with_the_rule(text, said):
    with pytest.raises(InputError) as caught:
        weights_of(text)
    message = str(caught.value)
    assert message.startswith(f"loss.class_weights={text!r} ")
    assert said in message
    assert message.endswith("; give 'balanced', 3 numbers, or names, such as 'cat: 2'")
    assert "\n" not in message


def test_balanced_weights_need_an_example_of_every_class():
    with pytest.raises(InputError) as caught:
        weights_of("balanced", lambda: np.array([3, 0, 4]))
    assert str(caught.value) == (
        "loss.class_weights='balanced' needs an example of every class, and 'dog' has none;"
        " give the weights, such as 'cat: 2'"
    )


PARAMS = {
    "head": {"kernel": jnp.array([[1.0, -2.0], [0.5, 0.0]]), "bias": jnp.array([7.0])},
    "norm": {"scale": jnp.array([9.0])},
}
MASK = {"head": {"kernel": True, "bias": False}, "norm": {"scale": False}}


def test_a_penalty_is_of_the_chosen_params_alone():
    assert float(penalty(PARAMS, MASK, l1=0.1, l2=0.0)) == pytest.approx(0.35)
    assert float(penalty(PARAMS, MASK, l1=0.0, l2=0.1)) == pytest.approx(0.525)
    assert float(penalty(PARAMS, MASK, l1=2.0, l2=0.1)) == pytest.approx(7.525)
    none = jax.tree.map(lambda _: False, MASK)
    assert float(penalty(PARAMS, none, l1=2.0, l2=0.1)) == 0


def test_the_slope_of_a_penalty_is_a_sign_and_twice_the_param():
    slope = jax.grad(penalty)(PARAMS, MASK, 0.25, 0.5)
    # No direction is away from 0: a param there stays.
    np.testing.assert_array_equal(slope["head"]["kernel"], [[1.25, -2.25], [0.75, 0]])
    assert float(slope["head"]["bias"][0]) == 0
    assert float(slope["norm"]["scale"][0]) == 0


@pytest.mark.slow
def test_losses_and_their_gradients_are_pytorchs():
    torch = pytest.importorskip("torch")
    functional, weights = torch.nn.functional, [0.5, 1.0, 2.0, 0.1]

    def bce(x, t):
        each = functional.binary_cross_entropy_with_logits(x, t, reduction="none")
        return each.mean(-1)

    def distilled(x, t):
        student, teacher = (functional.log_softmax(each / 3, -1) for each in (x, t))
        each = functional.kl_div(student, teacher, reduction="none", log_target=True)
        return 9 * each.sum(-1)

    def class_weighted(x, t):
        given = torch.tensor(weights)
        return functional.cross_entropy(x, t.argmax(-1), given, reduction="none")

    softmax_loss, scale = LOSSES["softmax"](), np.array(weights, np.float32)
    for ours, theirs, targets in (
        (LOSSES["sigmoid"](), bce, SOFT),
        (lambda x, t: distill(x, t, 3.0), distilled, 5 * SOFT),
        (weighted(softmax_loss, scale), class_weighted, HARD),
    ):
        logits = torch.tensor(LOGITS / 5, requires_grad=True)
        value = theirs(logits, torch.tensor(targets))
        value.sum().backward()
        found = ours(jnp.asarray(LOGITS / 5), jnp.asarray(targets))
        np.testing.assert_allclose(found, value.detach(), rtol=1e-5, atol=1e-6)
        slope = jax.grad(lambda x, t, f=ours: f(x, t).sum())(LOGITS / 5, targets)
        np.testing.assert_allclose(slope, logits.grad, rtol=1e-4, atol=1e-6)
