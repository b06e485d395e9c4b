"""The plug-in of the speed records: whitening, network, optimizer, and their recipe."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from benchmarks.flops import multiply_adds
from jaxcls import commands, experiment
from jaxcls.config import loading, plugins
from jaxcls.errors import InputError
from jaxcls.experiment import checks
from jaxcls.models.weights import transfer
from tests import modules
from tests.conftest import ROOT
from tests.modules import KEY, count, shapes

EXAMPLE = ROOT / "examples/airbench.py"
PLUGIN = plugins.load(str(EXAMPLE), "plugins")
airbench = sys.modules["airbench"]
dirac, whitening = airbench.dirac, airbench.whitening
built = partial(modules.built, table=airbench.MODELS)
outputs = partial(modules.outputs, table=airbench.MODELS)
RNG = np.random.default_rng(0)


def smooth_images():
    """[40, 9, 8, 3] float32 whose neighbouring pixels and channels go together."""
    noise = RNG.standard_normal((40, 10, 9, 4)).astype(np.float32)
    near = noise[:, 1:, 1:] + noise[:, :-1, 1:] + noise[:, 1:, :-1] + 0.5
    return near[..., 1:] + 0.7 * near[..., :-1]


def responses(images, kernel):
    """The products of every patch with every filter, [patches, filters] float64."""
    wide = np.float64(images)
    patches = np.lib.stride_tricks.sliding_window_view(wide, kernel.shape[:2], (1, 2))
    return np.einsum("nyxchw,hwcf->nyxf", patches, kernel).reshape(-1, kernel.shape[-1])


@pytest.mark.parametrize("side", [1, 2, 3])
def test_whitened_patches_are_uncorrelated_and_of_unit_size(side):
    images = smooth_images()
    kernel = whitening(images, kernel=side, epsilon=0.0)
    half = side * side * 3
    assert (kernel.shape, kernel.dtype) == ((side, side, 3, 2 * half), np.float32)
    found = responses(images, kernel)[:, :half]
    np.testing.assert_allclose(found.T @ found / len(found), np.eye(half), atol=1e-4)
    np.testing.assert_array_equal(kernel[..., half:], -kernel[..., :half])


def test_epsilon_keeps_small_whatever_hardly_varies():
    images = smooth_images()
    found = responses(images, whitening(images, epsilon=0.5))[:, :12]
    kept = np.diag(found.T @ found / len(found))
    # Of an eigenvalue v there is v / (v + epsilon) left.
    values = np.sort(kept * 0.5 / (1 - kept))[::-1]
    np.testing.assert_allclose(kept, values / (values + 0.5), rtol=1e-5)
    pixels = responses(images, np.eye(12).reshape(2, 2, 3, 12))
    assert values.sum() == pytest.approx(np.square(pixels).sum(1).mean(), rel=1e-4)


def test_whitening_has_one_answer_whatever_the_signs_of_eigenvectors():
    images = smooth_images()
    kernel = whitening(images)
    np.testing.assert_array_equal(whitening(-images), kernel)
    flat = kernel.reshape(12, 24)[:, :12]
    assert (flat[np.abs(flat).argmax(axis=0), np.arange(12)] > 0).all()


def test_whitening_is_of_all_images_however_many():
    images = RNG.standard_normal((600, 4, 4, 1)).astype(np.float32)
    again = np.concatenate([images, images, images])
    np.testing.assert_allclose(whitening(again), whitening(images), rtol=1e-5, atol=1e-6)
    assert np.abs(whitening(images[:300]) - whitening(images)).max() > 1e-3


def test_grey_pixels_of_a_corner_that_is_always_black_are_finite():
    images = (load_digits().images[:100, :, :, None] / 16).astype(np.float32)
    images[:, :, :4] = 0
    assert np.isfinite(whitening(np.repeat(images, 3, axis=3))).all()


@pytest.mark.slow
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 7), (4, 4), (6, 2)])
def test_the_first_filters_start_as_the_identity_and_others_as_pytorchs(inputs, outputs):
    kernel = dirac(KEY, (3, 3, inputs, outputs))
    x = jnp.asarray(RNG.standard_normal((2, 5, 6, inputs)).astype(np.float32))
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    same = min(inputs, outputs)
    np.testing.assert_allclose(y[..., :same], x[..., :same], atol=1e-6)
    others = np.asarray(kernel)[..., same:]
    bound = (1 / (9 * inputs)) ** 0.5
    if others.size:
        assert 0.8 * bound < np.abs(others).max() <= bound


@pytest.mark.parametrize(
    ("text", "steps", "peta"),
    [
        ("airbench", 48 * 9.9, 0.36),
        ("airbench(widths=(128, 384, 512), convs=3)", 48 * 37, 4.91),
    ],
)
def test_a_run_costs_what_the_author_states(text, steps, peta):
    module = built(text, num_classes=10)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    cost = multiply_adds(lambda x: module.init_with_output(KEY, x, False)[0], image)
    # Two operations each; forward, and twice that backward, for batches of 1,024; at the
    # end six views of 10,000 images.
    total = 2 * cost * (3 * 1024 * steps + 6 * 10_000)
    assert total / 1e15 == pytest.approx(peta, rel=0.02)


@pytest.mark.parametrize(("size", "sides"), [(32, (15, 7, 3)), (9, (4, 2, 1))])
def test_each_block_halves_what_the_first_layer_leaves(size, sides):
    seen = outputs("airbench(widths=(4, 6, 8))", size)
    for i, (side, width) in enumerate(zip(sides, (4, 6, 8), strict=True)):
        assert seen[f"block{i + 1}"] == (side, side, width)


@pytest.mark.slow
def test_statistics_keep_the_momentum_and_the_logits_the_scale():
    texts = "airbench(widths=(4,))", "airbench(widths=(4,), momentum=0.9, scale=1.0)"
    images = jnp.asarray(smooth_images())

    def start(text):
        module = built(text, num_classes=3)
        made = module.init(KEY, images, False)
        out, new = module.apply(made, images, True, mutable=["batch_stats"])
        return out.logits, new["batch_stats"]["block1"]["norm1"]

    (a, fast), (b, slow) = (jax.jit(start, static_argnums=0)(text) for text in texts)
    np.testing.assert_allclose(9 * a, b, rtol=1e-5)
    # From a mean of 0: 0.4 of the batch's, and 0.1 of it.
    np.testing.assert_allclose(fast["mean"], 4 * slow["mean"], rtol=1e-5)


def test_muon_with_sgd_orthogonalises_kernels_of_every_shape_and_leaves_the_rest_to_sgd():
    shapes = {
        "a": {"kernel": (3, 3, 2, 5)},
        "b": {"kernel": (3, 3, 2, 5)},
        "c": {"kernel": (4, 9), "bias": (9,)},
        "head": {"kernel": (9, 3)},
    }
    grads = jax.tree.map(
        lambda shape: jnp.asarray(RNG.standard_normal(shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    # Newton and Schulz's own coefficients, which converge to the orthogonal factor.
    options = {"coefficients": (1.5, -0.5, 0.0), "iterations": 40, "momentum": 0.5}
    optimizer = airbench.muon_sgd(optax.identity(), sgd_momentum=0.8, **options)
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    for name in ("a", "b", "c"):
        grad = np.asarray(grads[name]["kernel"], np.float64)
        u, _, v = np.linalg.svd(grad.reshape(-1, grad.shape[-1]), full_matrices=False)
        got = np.asarray(updates[name]["kernel"]).reshape(u.shape[0], -1)
        np.testing.assert_allclose(got, -u @ v, atol=1e-4)
    # The first step of Nesterov's momentum.
    for got, grad in (
        (updates["c"]["bias"], grads["c"]["bias"]),
        (updates["head"]["kernel"], grads["head"]["kernel"]),
    ):
        np.testing.assert_allclose(got, -1.8 * grad, rtol=1e-6)


def test_muon_with_sgd_iterates_as_published_on_the_momentum_of_two_steps():
    first, second = (RNG.standard_normal((6, 4)) for _ in range(2))
    optimizer = airbench.muon_sgd(optax.identity(), momentum=0.6)
    start = {"layer": {"kernel": jnp.zeros((6, 4))}}
    state = optimizer.init(start)
    for grad in (first, second):
        grads = {"layer": {"kernel": jnp.float32(grad)}}
        updates, state = optimizer.update(grads, state, start)
    momentum = 0.6 * first + second
    x = second + 0.6 * momentum
    x = x.T / np.linalg.norm(x)
    for _ in range(3):
        squared = x @ x.T
        x = 3.4445 * x - 4.775 * squared @ x + 2.0315 * squared @ squared @ x
    np.testing.assert_allclose(updates["layer"]["kernel"], -x.T, rtol=1e-4, atol=1e-5)


KERNEL = RNG.standard_normal((5,))
GRADS = RNG.standard_normal((12, 5))


def moved(**options):
    """(params, state) after each of twelve updates of -0.2 times GRADS."""
    optimizer = airbench.renormalize(optax.scale(-0.2), on="^w", **options)
    params = {"w": jnp.float32(KERNEL), "bias": jnp.zeros(5)}
    state = optimizer.init(params)
    for i, grad in enumerate(GRADS, start=1):
        grads = dict.fromkeys(params, jnp.float32(grad))
        share = jnp.float32(i / len(GRADS))
        updates, state = optimizer.update(grads, state, params, share=share)
        params = optax.apply_updates(params, updates)
        yield params, state


@pytest.mark.parametrize(
    ("options", "due"),
    [
        ({}, [*range(1, 13)]),
        ({"every": 5}, [5, 10]),
        # Of twelve: 2 from one to the next, from the third on 3, the sixth 4, the ninth 5.
        ({"every": 2, "growth": 4}, [2, 5, 10]),
    ],
)
def test_kernels_are_renormalized_before_the_updates_that_are_due(options, due):
    kernel, got = KERNEL.copy(), moved(**options)
    for i, ((params, state), grad) in enumerate(zip(got, GRADS, strict=True), start=1):
        if i in due:
            kernel = kernel * 5**0.5 / np.linalg.norm(kernel)
        kernel = kernel - 0.2 * grad
        np.testing.assert_allclose(params["w"], kernel, rtol=1e-5, atol=1e-6)
        assert int(state.last) == max([0, *(each for each in due if each <= i)])


def test_renormalizing_leaves_other_params_and_zeros_alone_and_wants_a_match():
    params = {"conv1": {"kernel": jnp.zeros((3, 4))}, "head": {"kernel": jnp.ones(2)}}
    optimizer = airbench.renormalize(optax.identity())
    zeros, one = jax.tree.map(jnp.zeros_like, params), jnp.float32(1.0)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params, share=one)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))
    with pytest.raises(InputError, match="renormalize: on='none' matches no param; give"):
        airbench.renormalize(optax.identity(), on="none").init(params)


def test_what_freezes_moves_up_to_its_share_of_the_run_and_no_more():
    seen = [params["bias"] for params, _ in moved(freeze="^bias", freeze_from=0.25)]
    for i, bias in enumerate(seen, start=1):
        # A quarter of twelve updates is three.
        expected = -0.2 * GRADS[: min(i, 3)].sum(0)
        np.testing.assert_allclose(bias, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("optim.name", "muon_sgd(sgd_on='[')", r"sgd_on='\[' is not a regular expression"),
        ("optim.name", "muon_sgd(momentum=1.0)", r"momentum=1.0 must be in \[0, 1\)"),
        (
            "optim.wrapper",
            "renormalize(every=0)",
            r"every=0 must be in \[1, inf\)",
        ),
        ("optim.wrapper", "renormalize(growth=-1)", r"growth=-1 must be in \[0, inf\)"),
        ("optim.wrapper", "renormalize(on='(')", r"on='\(' is not a regular expression"),
        ("optim.wrapper", "renormalize(freeze='(')", r"freeze='\(' is not a regular"),
        (
            "optim.wrapper",
            "renormalize(freeze_from=0)",
            "freeze_from=0 must be in",
        ),
        ("model.name", "airbench(widths=())", r"widths=\(\) must be at least 1"),
        ("model.name", "airbench(widths=(8, 0))", "must be at least 1, such as"),
        ("model.name", "airbench(convs=4)", "convs=4 must be 2 or 3"),
        ("model.name", "airbench(scale=0.0)", "scale=0.0 must be above 0"),
        ("model.name", "airbench(momentum=1.0)", "momentum=1.0 must be at least 0"),
        ("model.name", "airbench(activation='relu')", "must be 'gelu' or 'silu'"),
        ("model.name", "airbench", "needs? images of at least 9 pixels, and gets 8x8"),
    ],
)
def test_a_wrong_option_is_said_when_the_experiment_is_checked(tiny, key, text, message):
    with pytest.raises(InputError, match=message):
        checks.check(experiment.build(tiny(**{key: text}), plugins=PLUGIN))


def test_it_has_its_authors_number_of_params():
    output, variables = shapes(built("airbench", num_classes=10), 32)
    # 1,972,792 in the author's code, which counts 1,152 scales that stay 1.
    assert count(variables["params"]) == 1_972_792 - 1_152
    assert output.embed.shape == (2, 256)


@pytest.mark.parametrize(("shape", "classes"), [((7, 256), 7), ((7,), 0)])
def test_classes_of_its_weights_are_counted_by_the_heads_kernel(shape, classes):
    tensors = {"conv1.bias": np.zeros(64), "head.weight": np.zeros(shape)}
    assert transfer.classes_of(tensors, built("airbench").namings()) == classes


# The recipe on digits, with a narrow net.
RECIPE = {
    "model.name": "airbench(momentum=0.5566, activation='silu', widths=(8, 12, 16))",
    "data.name": "digits", "data.train": "train[:90%]", "data.eval": "train[90%:]",
    "data.train_ops": "decode | resize(16)", "data.eval_ops": "decode | resize(16)",
    "batch_size": "32", "length": "80 steps", "log.every": "1 step",
    "eval.every": "8 steps", "log.tensorboard": "false", "mesh.devices": "1",
}  # fmt: skip


@pytest.mark.slow
def test_the_recipe_learns_with_whitened_filters_and_a_bias_that_freezes(
    tmp_path, data_dir, monkeypatch
):
    monkeypatch.chdir(ROOT)
    given = {**RECIPE, "data.dir": str(data_dir)}
    config = loading.load("configs/cifar10_fast.py", given)
    used = loading.plugins_of("configs/cifar10_fast.py", config)
    exp = experiment.build(config, plugins=used)
    state = exp.init()
    images = np.asarray(exp.recipe.normalize(jnp.asarray(exp.data.sample(5000))))
    np.testing.assert_array_equal(
        state.params["whiten"]["kernel"], whitening(np.float32(images))
    )
    seen = []
    for batch in exp.train_batches():
        state, _ = exp.programs.train_step(state, batch)
        seen.append(np.asarray(state.params["whiten"]["bias"]).tobytes())
    # 0.025 of 80 steps.
    assert [seen[0] != seen[1], len({*seen[1:]})] == [True, 1]
    np.testing.assert_array_equal(
        state.params["whiten"]["kernel"], whitening(np.float32(images))
    )
    flags = [f"--config.{key}={value}" for key, value in given.items()]
    command = ["train", "--config=configs/cifar10_fast.py", f"--workdir={tmp_path}/run"]
    assert commands.main([*command, *flags]) == 0
    run = f"--workdir={tmp_path}/run"
    with pytest.raises(InputError, match="if you trust its code, give --plugins="):
        commands.main(["evaluate", run])
    assert commands.main(["evaluate", run, f"--plugins={EXAMPLE}"]) == 0


def test_arrays_of_images_that_the_model_does_not_have_are_refused(tiny, monkeypatch):
    exp = experiment.build(
        tiny(**{"model.name": "airbench(widths=(4,))", "data.train_ops": "decode(1)"
                " | resize(16)", "data.eval_ops": "decode(1) | resize(16)"}),
        plugins=PLUGIN,
    )  # fmt: skip

    def fails(self, images):
        raise ZeroDivisionError("no images")

    monkeypatch.setattr(airbench.Airbench, "from_images", fails)
    with pytest.raises(InputError, match=r"from_images fails .ZeroDivisionError: no"):
        exp.init()
    for wrong, message in (
        ({"whitened/kernel": np.zeros(3)}, "'params/whitened/kernel' .* no such array"),
        ({"whiten/bias": np.zeros(3)}, r"of shape \(3,\), and the model has shape \(8,\)"),
    ):
        monkeypatch.setattr(airbench.Airbench, "from_images", lambda *_, each=wrong: each)
        with pytest.raises(InputError, match=message):
            exp.init()
