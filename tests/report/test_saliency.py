"""Where a model looked: maps and weights against arithmetic of their own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.errors import InputError
from jaxcls.models import layers
from jaxcls.report import saliency
from tests import modules

# Of each family one, its images, and the height and width of its map by the papers.
FAMILIES = [
    ("alexnet", 64, 3),
    ("convnext_tiny", 64, 2),
    ("efficientnet_b0", 64, 2),
    ("mixer_b_32", 64, 2),
    ("mobilenet_v2", 64, 2),
    ("resnet50", 64, 2),
    ("swin_t", 64, 2),
    ("vgg11_bn", 64, 4),
    ("wrn16_4", 16, 4),
]


def applied(text, size, **options):
    """(module, variables, apply) of a model of 5 classes with weights of its own."""
    module = modules.built(text, num_classes=5, **options)
    _, like = modules.shapes(module, size)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), like)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: x**2 + 1 if path[-1].key == "var" else x, variables
    )
    return module, variables, lambda images: module.apply(variables, images, False).logits


last_map = jax.jit(saliency.last_map, static_argnums=0)


def captured(module, variables, images):
    """What every module gives, as Flax itself tells."""

    def run(images):
        return module.apply(variables, images, False, capture_intermediates=True)

    return jax.jit(run)(images)[1]["intermediates"]


def pictures(size, n=2):
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, size, size, 3)), "float32")


def test_what_speaks_against_a_class_is_no_evidence_for_it():
    values = jnp.ones((1, 2, 2, 2)).at[0, 0, 0].set(jnp.array([1.0, 5.0]))
    # Their means weigh the channels: 2 and -1.
    gradient = jnp.array([[[[1.0, 0], [2, -1]], [[3, -2], [2, -1]]]])
    cam = saliency.grad_cam(saliency.Features(values, gradient))
    np.testing.assert_allclose(cam[0], [[0, 1], [1, 1]])


def test_of_a_resnet_it_is_the_head_weighing_the_last_block():
    """There the gradient is known: the head sees the mean (arXiv:1512.04150)."""
    module, variables, apply = applied("resnet18(stem='small', width=8, stages=(1, 1))", 16)
    images, classes = pictures(16), np.array([3, 1])
    block = np.asarray(captured(module, variables, images)["stage2_block1"]["__call__"][0])
    kernel = np.asarray(variables["params"]["head"]["kernel"])[:, classes]
    expected = np.einsum("bhwc,cb->bhw", block, kernel) / 64
    found = saliency.grad_cam(last_map(apply, images, jnp.asarray(classes)))
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-4, atol=1e-6)
    assert np.asarray(found).max() > 0


@pytest.mark.slow
def test_the_gradient_is_that_of_the_layers_after_the_map():
    _, variables, apply = applied("cnn(widths=(4, 6), dense=7)", 8)
    images, classes = pictures(8), jnp.array([4, 0])
    features = last_map(apply, images, classes)
    assert features.values.shape == (2, 4, 4, 6)
    assert (features.values >= 0).all()  # After the ReLU, before the maximum.
    params = variables["params"]

    def rest(x):
        x = layers.max_pool(x, window=2, stride=2).reshape(2, -1)
        x = nn.relu(jnp.einsum("bi,io->bo", x, params["dense"]["kernel"]))
        logits = jnp.einsum("bi,io->bo", x, params["head"]["kernel"])
        return logits[0, 4] + logits[1, 0]

    expected = jax.grad(rest)(features.values)
    np.testing.assert_allclose(features.gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "grid"), FAMILIES)
def test_every_family_without_attention_has_a_map(name, size, grid):
    module = modules.built(name, num_classes=3)
    _, like = modules.shapes(module, size)
    like.setdefault("batch_stats", {})
    image = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)

    def found(variables, images):
        def apply(x):
            return module.apply(variables, x, False).logits

        assert saliency.attention(apply, images) is None
        return saliency.last_map(apply, images, jnp.array([0, 2]))

    values, gradient = jax.eval_shape(found, like, image)
    assert values.shape[:3] == (2, grid, grid)
    assert gradient.shape == values.shape


def test_a_model_without_a_map_is_refused():
    def apply(images):
        return nn.Dense(2, use_bias=False).apply({"params": {"kernel": images.T}}, images)

    with pytest.raises(InputError, match="no feature map"):
        saliency.last_map(apply, jnp.ones((2, 4)), jnp.array([0, 1]))


@pytest.mark.parametrize(
    "pool",
    [
        "token",
        *(
            pytest.param(pool, marks=pytest.mark.slow)
            for pool in ("mean", "patch_mean", "map", "rope")
        ),
    ],
)
def test_attention_weights_are_those_that_the_layers_use(pool):
    form = "position='rope', reg_tokens=2" if pool == "rope" else f"pool='{pool}'"
    text = f"vit_ti_16(depth=2, width=24, heads=3, {form})"
    module, variables, apply = applied(text, 48)
    images = pictures(48)
    told = jax.jit(lambda x: saliency.attention(apply, x))(images)
    found, grid, by_token, pooled = told
    assert grid == (3, 3)
    assert by_token == (pool in ("token", "rope"))
    tokens = 9 + {"mean": 0, "map": 0, "rope": 3}.get(pool, 1)
    assert found.shape == (2, 2, 3, tokens, tokens)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    seen = captured(module, variables, images)
    for i, weights in enumerate(found, 1):
        own = seen[f"block{i}"]["attention"]
        value = np.asarray(own["qkv"]["__call__"][0])[..., 48:].reshape(2, tokens, 3, 8)
        mixed = np.einsum("bhqk,bkhd->bqhd", weights, value).reshape(2, tokens, 24)
        out = variables["params"][f"block{i}"]["attention"]["out"]
        expected = np.einsum("bqi,io->bqo", mixed, out["kernel"]) + np.asarray(
            out["bias"]
        ).reshape(1, 1, -1)
        np.testing.assert_allclose(own["__call__"][0], expected, rtol=1e-4, atol=1e-5)
    assert (pooled is not None) == (pool == "map")
    if pool == "map":
        assert pooled.shape == (2, 3, 1, 9)
        own, out = seen["pool"], variables["params"]["pool"]["out"]
        value = np.asarray(own["kv"]["__call__"][0])[..., 24:].reshape(2, 9, 3, 8)
        mixed = np.einsum("bhqk,bkhd->bqhd", pooled, value).reshape(2, 24)
        expected = mixed @ np.asarray(out["kernel"]) + np.asarray(out["bias"])[None]
        np.testing.assert_allclose(
            own["out"]["__call__"][0], expected, rtol=1e-4, atol=1e-5
        )


def test_rollout_multiplies_the_layers_half_of_which_are_shortcuts():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(5), size=(3, 2, 4, 5)).astype(np.float32)
    expected = []
    for image in range(2):
        joint = np.eye(5)
        for layer in range(3):
            mean = sum(weights[layer, image, head] for head in range(4)) / 4
            joint = (0.5 * mean + 0.5 * np.eye(5)).dot(joint)
        expected.append(joint)
    token = saliency.rollout(saliency.Attention(jnp.asarray(weights), (2, 2), True))
    np.testing.assert_allclose(token, [e[0, 1:].reshape(2, 2) for e in expected], rtol=1e-5)
    mean = saliency.rollout(saliency.Attention(jnp.asarray(weights), (1, 5), False))
    np.testing.assert_allclose(mean, [[e.mean(0)] for e in expected], rtol=1e-5)
    # A class token beside, that the mean leaves out.
    mean = saliency.rollout(saliency.Attention(jnp.asarray(weights), (2, 2), False))
    patches = [e[1:, 1:].mean(0).reshape(2, 2) for e in expected]
    np.testing.assert_allclose(mean, patches, rtol=1e-5)
    pooled = rng.dirichlet(np.ones(4), size=(2, 3, 1)).astype(np.float32)
    given = saliency.Attention(jnp.asarray(weights), (2, 2), False, jnp.asarray(pooled))
    shares = [
        (p.mean((0, 1)) @ e[1:, 1:]).reshape(2, 2)
        for p, e in zip(pooled, expected, strict=True)
    ]
    np.testing.assert_allclose(saliency.rollout(given), shares, rtol=1e-5)
