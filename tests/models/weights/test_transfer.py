"""Foreign tensors for real models: all that fits, what does not, and positions resized."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.data import sources
from jaxcls.errors import InputError
from jaxcls.models import naming
from jaxcls.models.weights import transfer
from tests.modules import built, shapes

MODELS = {
    "vit": ("vit_ti_16(depth=2, width=12)", 32, 3),
    "plain_vit": ("vit_ti_16(depth=1, width=12, pool='mean')", 32, 3),
    "resnet": ("resnet18(width=8)", 32, 3),
    "cnn": ("cnn(batch_norm=True, widths=(4,), dense=8)", 8, 1),
    "convnext": ("convnext_tiny(width=8)", 32, 3),
    "convnextv2": ("convnextv2_atto(width=8, stages=(1, 1))", 32, 3),
    "swin": ("swin_t(stages=(1, 1), heads=(1, 2), width=8)", 32, 3),
}


@functools.cache
def model(kind, classes=10, size=None):
    """(namings, variables as shapes) of a small model."""
    text, usual, channels = MODELS[kind]
    module = built(text, num_classes=classes)
    return module.namings(), shapes(module, size or usual, channels)[1]


def file_of(kind, library, **options):
    """(variables, {name there: tensor}) of a model whose weights a library holds."""
    namings, like = model(kind, **options)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), like)
    return variables, naming.to_theirs(variables, namings[library])


def same(arrays, variables):
    """Whether arrays by path are those of variables, in every bit."""
    alike = functools.partial(np.testing.assert_array_equal, strict=True)
    jax.tree.map(alike, arrays, naming.flatten(variables))


def refusal(tensors, kind, *, size=None, **options):
    """The one line with which tensors are refused for a model."""
    namings, like = model(kind, size=size)
    with pytest.raises(InputError) as error:
        transfer.adapt(tensors, namings, like, **options)
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


LIBRARIES = [
    ("vit", "torchvision"),
    ("vit", "timm"),
    ("plain_vit", "timm"),
    ("resnet", "torchvision"),
    ("cnn", "pytorch"),
    ("convnext", "torchvision"),
    ("convnext", "timm"),
    ("convnextv2", "timm"),
    ("swin", "torchvision"),
    ("swin", "timm"),
]


@pytest.mark.parametrize(("kind", "library"), LIBRARIES)
def test_the_right_file_fits_whole_by_the_names_it_has(kind, library):
    variables, tensors = file_of(kind, library)
    start = transfer.adapt(tensors, *model(kind))
    same(start.arrays, variables)
    n = len(naming.flatten(variables))
    assert start.notes == [f"{n} of {n} arrays, by {library}'s names"]


def test_the_library_with_most_names_in_common_is_taken():
    variables, tensors = file_of("vit", "timm")
    _, others = file_of("vit", "torchvision")
    few = dict(list(others.items())[:3])
    text = refusal(tensors | few, "vit")
    assert text.startswith("does not fit by timm's names: it has 3 more (")
    skip = "|".join(map(re.escape, few))
    start = transfer.adapt(tensors | few, *model("vit"), skip=skip)
    same(start.arrays, variables)


def test_what_is_missing_extra_and_of_another_shape_is_listed_on_one_line():
    _, tensors = file_of("resnet", "torchvision")
    lacking = [name for name in tensors if name.startswith("layer2.0.")][:6]
    assert len(lacking) == 6
    for name in lacking:
        del tensors[name]
    tensors |= {"aux.weight": np.zeros(2), "aux.bias": np.zeros(1)}
    tensors["conv1.weight"] = np.zeros((8, 1, 7, 7))
    tensors["layer1.0.bn1.bias"] = np.zeros(())
    text = refusal(tensors, "resnet")
    listed = re.search(r"lacks 6 \((.*?), \.\.\. \(6\)\)", text)[1].split(", ")
    assert len(listed) == 4
    assert set(listed) <= set(lacking)
    assert "has 2 more (aux.bias, aux.weight)" in text
    assert "has 2 of another shape" in text
    assert "conv1.weight 8x1x7x7, not 8x3x7x7" in text
    assert "layer1.0.bn1.bias a number, not 8" in text
    assert "init.skip" in text


@pytest.mark.parametrize("kind", ["vit", "cnn"])
def test_a_head_of_other_classes_is_refused_with_what_replaces_it(kind):
    library = "pytorch" if kind == "cnn" else "torchvision"
    _, tensors = file_of(kind, library, classes=7)
    text = refusal(tensors, kind)
    assert "has 2 of another shape" in text
    assert "init.head='fresh'" in text
    namings, like = model(kind)
    start = transfer.adapt(tensors, namings, like, is_head_fresh=True)
    body = {path for path in naming.flatten(like) if not path.startswith("params/head/")}
    assert set(start.arrays) == body
    n = len(body)
    assert start.notes == [f"{n} of {n + 2} arrays, by {library}'s names"]


@pytest.mark.parametrize("classes", [10, 7, None])
def test_a_fresh_head_takes_nothing_of_the_one_there(classes):
    variables, tensors = file_of("resnet", "timm", classes=classes or 10)
    if classes is None:
        del tensors["fc.weight"], tensors["fc.bias"]
        assert "lacks 2 (fc.bias, fc.weight)" in refusal(tensors, "resnet")
    start = transfer.adapt(tensors, *model("resnet"), is_head_fresh=True)
    expected = naming.flatten(variables)
    same(start.arrays, {p: x for p, x in expected.items() if "params/head/" not in p})


def test_a_fresh_head_excuses_nothing_else():
    _, tensors = file_of("resnet", "timm", classes=7)
    tensors["conv1.weight"] = tensors["conv1.weight"][:, :1]
    text = refusal(tensors, "resnet", is_head_fresh=True)
    assert "has 1 of another shape (conv1.weight 8x1x7x7, not 8x3x7x7)" in text
    assert "fresh" not in text


def test_what_skip_names_on_either_side_may_be_missing_extra_or_another_shape():
    variables, tensors = file_of("resnet", "timm")
    del tensors["layer4.1.bn2.weight"], tensors["layer4.1.bn2.bias"]
    tensors["aux.weight"] = np.zeros(3, np.float32)
    tensors["conv1.weight"] = np.zeros((8, 1, 7, 7), np.float32)
    left = {
        "params/stage4_block2/norm2/scale",
        "params/stage4_block2/norm2/bias",
        "params/conv1/kernel",
    }
    expected = naming.flatten(variables)
    for skip in (
        r"^layer4\.1\.bn2\.(weight|bias)$|^aux|^conv1\.weight$",
        r"^params/stage4_block2/norm2/|^aux|^params/conv1/kernel$",
    ):
        start = transfer.adapt(tensors, *model("resnet"), skip=skip)
        same(start.arrays, {p: x for p, x in expected.items() if p not in left})
    assert "lacks 2 (" in refusal(tensors, "resnet", skip=r"^aux|conv1")
    assert "has 1 more (aux.weight)" in refusal(tensors, "resnet", skip=r"^params/")
    assert "conv1.weight 8x1x7x7" in refusal(tensors, "resnet", skip=r"^aux|^layer4")


def test_an_extra_tensor_is_extra_though_the_pattern_finds_an_empty_text():
    _, tensors = file_of("cnn", "pytorch")
    tensors["teacher.weight"] = np.zeros(1)
    assert "has 1 more (teacher.weight)" in refusal(tensors, "cnn", skip="^(?!teacher)")


@pytest.mark.parametrize(
    ("kind", "other", "library"), [("vit", "cnn", "pytorch"), ("cnn", "vit", "timm")]
)
def test_another_familys_tensors_are_refused(kind, other, library):
    _, tensors = file_of(other, library)
    text = refusal(tensors, kind)
    assert "weights of this very model" in text
    assert any(name in text for name in tensors)


def test_unknown_names_are_refused_with_the_first_of_them():
    tensors = {f"encoder.{i}.weight": np.zeros(1) for i in range(9)}
    text = refusal(tensors, "vit")
    assert "by torchvision's or timm's names; it has encoder.0.weight, " in text
    assert "encoder.3.weight, ... (9); give" in text


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "backbone.", "net.", "_orig_mod.", "module.model.", "a.b.c."],
)
@pytest.mark.parametrize(("kind", "library"), [("resnet", "torchvision"), ("vit", "timm")])
def test_a_prefix_of_all_names_is_taken_off_and_said(kind, library, prefix):
    variables, tensors = file_of(kind, library)
    given = {f"{prefix}{name}": values for name, values in tensors.items()}
    start = transfer.adapt(given, *model(kind))
    same(start.arrays, variables)
    n = len(naming.flatten(variables))
    assert start.notes == [
        f"all names without their prefix {prefix!r}",
        f"{n} of {n} arrays, by {library}'s names",
    ]
    assert transfer.classes_of(given, model(kind)[0]) == 10
    counted = given | {"n_averaged": np.array(7)}  # As torch's average of a model has it.
    same(transfer.adapt(counted, *model(kind)).arrays, variables)
    other = given | {"criterion.weight": np.zeros(3)}
    assert f"names; it has {next(iter(given))}, " in refusal(other, kind)


def test_no_tensors_at_all_are_refused_as_such():
    assert "holds no tensors" in refusal({}, "resnet")


def test_a_skip_that_leaves_nothing_is_refused():
    _, tensors = file_of("cnn", "pytorch")
    assert "gives nothing that init.skip='.' leaves" in refusal(tensors, "cnn", skip=".")


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_tensors_of_another_precision_come_out_float32(dtype):
    _, tensors = file_of("vit", "timm")
    other = {name: x.astype(dtype) for name, x in tensors.items()}
    wide = {name: x.astype(np.float32) for name, x in other.items()}
    found, expected = (transfer.adapt(x, *model("vit", size=64)) for x in (other, wide))
    same(found.arrays, expected.arrays)


@pytest.mark.parametrize(
    ("text", "name", "shape", "classes"),
    [
        ("resnet18", "fc.bias", (7,), 7),
        ("resnet18", "fc.bias", (), 0),
        ("vit_b_16", "heads.head.bias", (7,), 7),
        ("vit_b_16", "head.bias", (7,), 7),
        ("vgg11", "other.bias", (7,), 0),
    ],
)
def test_classes_are_counted_by_the_heads_bias_or_its_kernel(text, name, shape, classes):
    tensors = {"conv1.bias": np.zeros(64), name: np.zeros(shape)}
    assert transfer.classes_of(tensors, built(text).namings()) == classes


def resized(positions, prefix, rows, columns):
    """Positions [1, N, D] on another grid, as Pillow resizes the grid of each feature."""
    old = round((positions.shape[1] - prefix) ** 0.5)
    grid = positions[0, prefix:].reshape(old, old, -1)
    planes = map(Image.fromarray, np.moveaxis(grid, -1, 0).copy())
    new = [plane.resize((columns, rows), Image.Resampling.BICUBIC) for plane in planes]
    flat = np.stack(new, -1).reshape(1, rows * columns, -1)
    return np.concatenate([positions[:, :prefix], flat], axis=1)


def positions_of(prefix, side, features=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((1, prefix + side * side, features), np.float32)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(
    ("old", "new"), [(7, (14, 14)), (24, (14, 14)), (16, (5, 9)), (3, (1, 1))]
)
def test_positions_are_resized_as_pillow_resizes_an_image(old, new, prefix):
    positions = positions_of(prefix, old)
    got = transfer.resample(positions, new, prefix)
    np.testing.assert_allclose(got, resized(positions, prefix, *new), atol=1e-5)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[:, :prefix], positions[:, :prefix])


@pytest.mark.parametrize(
    ("kind", "library", "name", "old", "new"),
    [
        ("vit", "timm", "pos_embed", 32, 64),
        ("vit", "torchvision", "encoder.pos_embedding", 64, 32),
        ("plain_vit", "timm", "pos_embed", 48, 80),
    ],
)
def test_a_vit_of_another_image_size_is_resampled_and_says_so(
    kind, library, name, old, new
):
    variables, tensors = file_of(kind, library, size=old)
    namings, like = model(kind, size=new)
    start = transfer.adapt(tensors, namings, like)
    sides = old // 16, new // 16
    assert start.notes[1:] == ["positions resampled from {0}x{0} to {1}x{1}".format(*sides)]
    prefix = int(kind == "vit")
    expected = naming.flatten(variables)
    expected["params/position"] = resized(tensors[name], prefix, sides[1], sides[1])
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, start.arrays, expected)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("vit", (1, 1 + 6, 12)),  # 2x3 is no square.
        ("vit", (1, 4, 12)),  # A grid without its class token.
        ("vit", (1, 1, 12)),  # A class token without its grid.
        ("vit", (1, 0, 12)),
        ("vit", (1, 1 + 9, 6)),  # Another width.
        ("vit", (1 + 9, 12)),
        ("vit", (2, 1 + 9, 12)),
        ("plain_vit", (2, 9, 12)),
    ],
)
def test_positions_that_are_no_other_square_of_the_same_width_are_refused(kind, shape):
    _, tensors = file_of(kind, "timm")
    wanted = tensors["pos_embed"].shape
    tensors["pos_embed"] = np.zeros(shape, np.float32)
    told = [" ".join(map(str, each)).replace(" ", "x") for each in (shape, wanted)]
    assert "pos_embed {}, not {}".format(*told) in refusal(tensors, kind)


def test_positions_for_images_that_are_no_square_need_the_images_shape():
    text, _, channels = MODELS["vit"]
    module = built(text, num_classes=10)
    image = jax.ShapeDtypeStruct((1, 32, 48, channels), jnp.float32)
    like = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), image)
    _, tensors = file_of("vit", "timm")
    with pytest.raises(InputError, match="pos_embed 1x5x12, not 1x7x12"):
        transfer.adapt(tensors, module.namings(), like)
    start = transfer.adapt(tensors, module.namings(), like, image_shape=(32, 48, channels))
    assert start.notes[1:] == ["positions resampled from 2x2 to 3x2"]
    expected = resized(tensors["pos_embed"], 1, 2, 3)
    np.testing.assert_allclose(start.arrays["params/position"], expected, atol=1e-5)


def test_positions_of_a_strip_are_taken_for_as_many_patches_and_said(tmp_path):
    path = tmp_path / "strip.safetensors"
    text = MODELS["vit"][0]
    module = built(text, num_classes=10)
    image = jax.ShapeDtypeStruct((1, 32, 48, 3), jnp.float32)
    like = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), image)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), like)
    save_file(naming.to_theirs(variables, module.namings()["timm"]), path)
    values = {"model.name": text, "init.weights": str(path), "mesh.devices": 1}
    config = loading.from_flat({**values, "data.name": "absent"})
    facts = sources.Facts("absent", "", (32, 48, 3), 10, (), {"train": 500})
    found = experiment.build(config, facts).initial
    position = variables["params"]["position"]
    np.testing.assert_array_equal(found.arrays["params/position"], position)
    assert "positions of as many patches, taken for those of 48x32" in found.notes[0]


def test_positions_of_a_square_are_not_taken_for_a_strip_of_as_many_patches(tmp_path):
    path = tmp_path / "square.safetensors"
    save_file(file_of("vit", "timm")[1], path)
    values = {"model.name": MODELS["vit"][0], "init.weights": str(path), "mesh.devices": 1}
    config = loading.from_flat({**values, "data.name": "absent"})
    # Four patches, as in 32x32.
    facts = sources.Facts("absent", "", (16, 64, 3), 10, (), {"train": 500})
    with pytest.raises(InputError, match=r"positions for .* than 64x16; .* a square"):
        _ = experiment.build(config, facts).initial
    facts = sources.Facts("absent", "", (32, 48, 3), 10, (), {"train": 500})
    (note,) = experiment.build(config, facts).initial.notes
    assert note.endswith("positions resampled from 2x2 to 3x2")
