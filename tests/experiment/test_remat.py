"""Blocks that are computed anew: the same numbers and names, for less that is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import experiment
from jaxcls.devices.memory import activation_bytes, tree_bytes
from jaxcls.models import MODELS, layers, vit
from tests.modules import built

# Of every family made of blocks, with few of them, and a size of image that it takes.
FAMILIES = {
    "convnext_tiny(stages=(2, 2, 2))": 32, "efficientnet_b0": 32, "mixer_s_32(depth=3)": 64,
    "mobilenet_v2": 32, "resnet18(stages=(2, 2))": 32, "resnet50(stages=(2, 2))": 32,
    "swin_t(stages=(2, 2), heads=(3, 6))": 32, "vit_ti_32(depth=3)": 64, "wrn16_4": 32,
}  # fmt: skip


def loss_of(model, blocks, images, policy=None):
    """params -> the loss of a training step, and what BatchNorm keeps."""

    def loss(params, rest):
        with layers.batch_norm_groups(2), layers.rematerialised(blocks, None, policy):
            out, updated = model.apply(
                {"params": params, **rest},
                images,
                True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(2)},
            )
        return jnp.square(out.logits - 1).mean() + jnp.square(out.embed).mean(), updated

    return loss


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, marks=[] if text.startswith("mixer") else pytest.mark.slow)
        for text in FAMILIES
    ],
)
def test_every_family_of_blocks_keeps_less_for_its_gradient(text):
    model = built(text, num_classes=5)
    if hasattr(model, "net"):
        model = model.clone(net=model.net._replace(stages=model.net.stages[:4]))
    images = jnp.zeros((4, FAMILIES[text], FAMILIES[text], 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, False))
    rest = {"batch_stats": variables.get("batch_stats", {})}
    params = variables["params"]

    def kept(blocks, policy=None):
        """Bytes that the backward pass is given, params apart."""

        def backward(params, rest):
            loss = loss_of(model, blocks, images, policy)
            return jax.vjp(lambda p: loss(p, rest)[0], params)[1]

        return tree_bytes(jax.eval_shape(backward, params, rest)) - tree_bytes(params)

    blocks = layers.blocks_of(model.groups())
    assert blocks <= params.keys()
    few, some, all_ = kept(blocks), kept(blocks, layers.keep_products), kept(set())
    assert few < 0.7 * all_
    assert few < some < 0.95 * all_


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_loss_gradients_statistics_and_dropout_are_those_without(name):
    model = {
        "vit": lambda: vit.ViT(
            4, patch=4, width=16, depth=2, heads=2, dropout=0.3, drop_path=0.5
        ),
        "resnet": lambda: MODELS["resnet18"](
            num_classes=4, stages=(1, 1), width=8, stem="small", drop_path=0.5
        ),
    }[name]()
    images = jax.random.normal(jax.random.key(1), (8, 8, 8, 3))
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, False))()
    params = jax.tree.map(lambda x: x + 0.01, variables.pop("params"))
    found = [
        jax.jit(jax.value_and_grad(loss_of(model, blocks, images, policy), has_aux=True))(
            params, variables
        )
        for blocks, policy in (
            (set(), None),
            (layers.blocks_of(model.groups()), None),
            (layers.blocks_of(model.groups()), layers.keep_products),
        )
    ]
    for remade in found[1:]:
        assert jax.tree.structure(found[0]) == jax.tree.structure(remade)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            found[0],
            remade,
        )


@pytest.mark.slow
def test_a_run_takes_it_and_its_state_has_the_same_names(tiny):
    model = {"model.name": "resnet18(stem='small', width=4, stages=(1, 1))"}
    model |= {"augment": "", "mix": ""}
    exps = [
        experiment.build(tiny(**model, **{"model.remat": kind}))
        for kind in ("", "blocks", "elementwise")
    ]
    shapes = [exp.programs.state_shapes for exp in exps]
    assert shapes[0] == shapes[1] == shapes[2]
    texts = [exp.programs.lowered_train_step.as_text() for exp in exps]
    barriers = [text.count("optimization_barrier") for text in texts]
    convolutions = [text.count("stablehlo.convolution") for text in texts]
    assert barriers[0] == 0 < min(barriers[1:])
    assert convolutions[0] == convolutions[2] < convolutions[1]


def test_what_is_computed_anew_counts_as_what_it_is_given_and_the_largest_part():
    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 4), (4, 4)))
    part = jax.checkpoint(lambda x, w: (x @ w) @ w)
    once = 8 * 4 * 4
    assert activation_bytes(lambda x, w: (x @ w) @ w, 8, x, w) == 3 * once
    assert (
        activation_bytes(lambda x, w: part(part(x, w), w), 8, x, w) == 2 * once + 3 * once
    )
