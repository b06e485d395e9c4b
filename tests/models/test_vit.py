"""Vision Transformers: the scales of their branches, and where the class token is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.models.attention import attend
from jaxcls.models.vit import Attention, Block
from tests.modules import KEY, built, count, shapes


def test_attention_is_numpys():
    x = np.random.default_rng(1).standard_normal((2, 5, 8), np.float32)
    y, made = Attention(2, jnp.float32).init_with_output(KEY, x)
    qkv, out = (
        {k: np.asarray(v, np.float64) for k, v in made["params"][name].items()}
        for name in ("qkv", "out")
    )
    # [3, B, heads, N, D]: three times all heads, one after the other.
    split = (x @ qkv["kernel"] + qkv["bias"]).reshape(2, 5, 3, 2, 4)
    query, key, value = split.transpose(2, 0, 3, 1, 4)
    scores = np.exp(query @ key.swapaxes(-1, -2) / np.sqrt(4))
    mixed = scores / scores.sum(-1, keepdims=True) @ value
    expected = mixed.transpose(0, 2, 1, 3).reshape(2, 5, 8) @ out["kernel"] + out["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_layer_scale_is_where_a_branch_starts():
    x = np.random.default_rng(0).standard_normal((2, 5, 8), np.float32)

    def started(layer_scale):
        """What a fresh block gives for tokens, with its parameters."""
        module = Block(2, jnp.float32, 0.0, 0.0, layer_scale)
        y, made = jax.jit(lambda x: module.init_with_output(KEY, x, False))(x)
        return np.asarray(y), made["params"]

    y, small = started(1e-12)
    np.testing.assert_allclose(y, x, atol=1e-9)
    for n in (1, 2):
        assert small[f"layer_scale{n}"].tolist() == [np.float32(1e-12)] * 8
    plain, without = started(0.0)
    assert set(small) - set(without) == {"layer_scale1", "layer_scale2"}
    np.testing.assert_allclose(started(1.0)[0], plain, rtol=1e-6)
    assert np.abs(plain - x).max() > 0.1


def test_deit_3_has_two_scales_a_block_more_and_one_position_less():
    plain = count(shapes(built("vit_s_16"), 224)[1]["params"])
    _, made = shapes(built("vit_s_16(layer_scale=1e-4, token_position=False)"), 224)
    # 22,059,496 is what timm counts for deit3_small_patch16_224.
    assert count(made["params"]) == plain + 2 * 12 * 384 - 384 == 22_059_496
    assert made["params"]["position"].shape == (1, 14 * 14, 384)


@pytest.mark.slow
@pytest.mark.parametrize("position", ["learned", "sincos"])
def test_a_token_without_a_position_stays_what_it_is(position):
    # The block adds nothing, so the features are the token's, normalised.
    options = f"depth=1, layer_scale=1e-12, position='{position}'"
    images = np.ones((1, 32, 32, 3), np.float32)

    def features(more):
        module = built(f"vit_ti_16({options}{more})", num_classes=3)
        out, made = module.init_with_output(KEY, images, False)
        kept = made["params" if position == "learned" else "batch_stats"]["position"]
        return out.embed, kept

    embed, kept = jax.jit(features, static_argnums=0)(", token_position=False")
    assert kept.shape == (1, 4, 192)
    np.testing.assert_allclose(embed, np.zeros((1, 192)), atol=1e-6)
    embed, kept = jax.jit(features, static_argnums=0)("")
    assert kept.shape == (1, 5, 192)
    first = np.asarray(kept[0, :1])
    expected = (first - first.mean()) / np.sqrt(first.var() + 1e-6)
    np.testing.assert_allclose(embed, expected, rtol=1e-4, atol=1e-5)


def test_files_of_a_form_that_torchvision_lacks_are_timms():
    assert set(built("vit_s_16").namings()) == {"torchvision", "timm"}
    for option in ("layer_scale=0.1", "token_position=False", "pool='mean'"):
        assert set(built(f"vit_s_16({option})").namings()) == {"timm"}


@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_the_gradients_of_attention_are_those_that_jax_derives(dtype, near):
    rng = np.random.default_rng(2)
    *heads, weights = (jnp.asarray(rng.normal(size=(2, 3, 7, 4)), dtype) for _ in range(4))

    def ours(*heads):
        return (attend(*heads) * weights).astype(jnp.float32).sum()

    def plain(query, key, value):
        scores = jnp.einsum("bhqd,bhkd->bhqk", query, key) / 2
        mixed = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores), value)
        return (mixed * weights.astype(jnp.float32)).sum()

    wide = [each.astype(jnp.float32) for each in heads]
    expected = jax.value_and_grad(plain, argnums=(0, 1, 2))(*wide)
    found = jax.value_and_grad(ours, argnums=(0, 1, 2))(*heads)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(np.float32(got), want, rtol=near, atol=near * scale)
