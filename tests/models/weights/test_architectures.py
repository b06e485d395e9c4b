"""Another network with the very tensors of a model is refused, or said."""

import json
import re
import runpy

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.data import sources
from jaxcls.errors import InputError
from jaxcls.models import naming, weights
from jaxcls.models.weights import architectures, transfer
from tests.modules import built, shapes
from tests.test_laws import ROOT

TENSORFLOW = "padding='same', norm_epsilon=0.001"


def note(text, architecture):
    return architectures.check(architecture, text, built(text))


@pytest.mark.parametrize(
    ("text", "architecture"),
    [
        ("efficientnet_b0", "efficientnet_b0"),
        (f"efficientnet_b0({TENSORFLOW})", "tf_efficientnet_b0"),
        ("mobilenet_v2", "mobilenetv2_100"),
        ("mobilenet_v3_small(norm_epsilon=1e-5)", "mobilenetv3_small_100"),
        ("mobilenet_v3_small", "mobilenetv3_small_100(bn_eps=0.001)"),
        ("mobilenet_v3_small(padding='same')", "tf_mobilenetv3_small_100"),
        ("mobilenet_v2(padding='same')", "mobilenetv2_100(pad_type='same')"),
        ("resnet50", "resnet50"),
        ("resnet50", "transformers_resnet"),
        ("vit_s_16", "transformers_vit(num_attention_heads=6)"),
        ("vit_s_16(heads=12)", "transformers_vit(num_attention_heads=12)"),
        ("convnext_tiny", "transformers_vit(num_attention_heads=12)"),
        ("vit_s_16(depth=1)", "vit_small_patch16_384"),
        ("vit_s_16(depth=1)", "deit_small_patch16_224"),
        ("vit_s_16(depth=1, patch=8, layer_scale=1e-5)", "vit_small_patch8_dinov2"),
        ("dinov2_s_14(depth=1)", "vit_small_patch14_dinov2"),
        ("vit_s_16(depth=1, patch=14, layer_scale=1e-5)", "vit_small_patch14_dinov2"),
        ("dinov3_s_16", "vit_small_patch16_dinov3(global_pool='token')"),
        ("dinov3_s_16(pool='norm_patch_mean')", "vit_small_patch16_dinov3"),
        ("clip_l_14(gelu='quick')", "vit_large_patch14_clip_quickgelu_336"),
        ("clip_b_32(gelu='tanh')", "vit_base_patch32_clip_224(act_layer='gelu_tanh')"),
        ("siglip_b_16", "vit_base_patch16_siglip_384"),
        ("siglip_b_16(pool='token')", "vit_base_patch16_siglip_224(global_pool='token')"),
        ("mixer_b_16(depth=1)", "mixer_b16_224"),
        ("vit_s_16(gelu='tanh')", "vit_small_patch16_224(act_layer='gelu_tanh')"),
        ("vit_s_16(pool='patch_mean')", "vit_small_patch16_224(global_pool='avg')"),
        ("convnextv2_tiny(stages=(1, 1))", "convnextv2_tiny"),
        ("convnextv2_nano(layer_scale=0.0)", "convnextv2_nano"),
        ("swin_b(window=12)", "swin_base_patch4_window12_384"),
        ("swin_t(stages=(1, 2), heads=(3, 6))", "swin_tiny_patch4_window7_224"),
        ("efficientnet_b0", ""),  # Of jaxcls itself.
    ],
)
def test_the_same_architecture_says_nothing(text, architecture):
    assert note(text, architecture) == ""


@pytest.mark.parametrize(
    ("text", "architecture", "expected"),
    [
        (
            "efficientnet_b0",
            "tf_efficientnet_b0",
            "is of tf_efficientnet_b0, which has padding='same', norm_epsilon=0.001; give"
            f' model.name="efficientnet_b0({TENSORFLOW})"',
        ),
        (
            "efficientnet_b0(padding='same')",
            "tf_efficientnet_b0",
            "is of tf_efficientnet_b0, which has norm_epsilon=0.001; give",
        ),
        (
            "efficientnet_b0(padding='same')",
            "efficientnet_b0",
            "which has padding='symmetric'; give model.name=efficientnet_b0",
        ),
        ("efficientnet_b0", "efficientnet_blur_b0", "is of efficientnet_blur_b0, whose"),
        (
            "efficientnet_v2_s",
            "efficientnetv2_s",
            "which has norm_epsilon=1e-05; give"
            ' model.name="efficientnet_v2_s(norm_epsilon=1e-05)"',
        ),
        (
            "efficientnet_v2_s",
            "tf_efficientnetv2_s",
            "has padding='same'; give model.name=\"efficientnet_v2_s(padding='same')\"",
        ),
        (
            "mobilenet_v3_large(norm_epsilon=1e-5)",
            "mobilenetv3_large_100(bn_eps=0.001)",
            "which has norm_epsilon=0.001; give model.name=mobilenet_v3_large",
        ),
        (
            "efficientnet_b0",
            "efficientnet_b0(pad_type='same')",
            "which has padding='same'; give model.name=\"efficientnet_b0(padding='same')\"",
        ),
        (
            "resnet50",
            "resnetblur50",
            "is of resnetblur50, whose tensors fit resnet50 and mean another network; give"
            " weights of resnet50",
        ),
        ("resnet50", "resnetaa50", "is of resnetaa50, whose tensors fit resnet50"),
        (
            "vit_s_16",
            "transformers_vit(num_attention_heads=12)",
            "of a network with 12 heads, and model.name=vit_s_16 has 6; give its opti",
        ),
        ("resnet18", "resnetblur18", "is of resnetblur18, whose tensors fit resnet18"),
        (
            "clip_b_32",
            "vit_base_patch32_clip_quickgelu_224",
            "is of vit_base_patch32_clip_quickgelu_224, with gelu='quick' (here 'exact');"
            " give model.name=\"clip_b_32(gelu='quick')\"",
        ),
        (
            "dinov3_s_16",
            "vit_small_patch16_dinov3",
            "with pool='norm_patch_mean' (here 'token'); give"
            " model.name=\"dinov3_s_16(pool='norm_patch_mean')\"",
        ),
        (
            "dinov2_b_14_reg4(heads=6)",
            "vit_base_patch14_reg4_dinov2",
            "with heads=12 (here 6); give model.name=dinov2_b_14_reg4",
        ),
        ("siglip_b_16(gelu='tanh')", "vit_base_patch16_siglip_256", "gelu='exact' (here"),
    ],
)
def test_another_architecture_is_refused_with_what_makes_it_right(
    text, architecture, expected
):
    with pytest.raises(InputError) as refused:
        note(text, architecture)
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("there", "here", "told"),
    [
        (
            "mobilenet_v2(padding='same')",
            "mobilenet_v2",
            "padding='same' (here 'symmetric')",
        ),
        ("efficientnet_lite0(norm_epsilon=1e-3)", "efficientnet_lite0", "norm_epsilon=0.0"),
        ("vit_ti_16(depth=1, gelu='tanh')", "vit_ti_16(depth=1)", "gelu='tanh' (here 'exa"),
        ("mixer_s_32", "mixer_s_32(gelu='tanh')", "gelu='exact' (here 'tanh')"),
        ("vit_ti_16(heads=6)", "vit_ti_16", "heads=6 (here 3)"),
        ("vit_ti_16(pool='patch_mean')", "vit_ti_16", "pool='patch_mean' (here 'token')"),
        ("resnet50(blur=True)", "resnet50", "blur=True (here False)"),
        ("cnn(pool='mean')", "cnn", "pool='mean' (here 'max')"),
    ],
)
def test_our_own_weights_of_another_form_are_refused_or_said(there, here, told):
    with pytest.raises(InputError) as refused:
        note(here, f"jaxcls.{there}")
    assert told in str(refused.value)
    assert str(refused.value).endswith(
        f'; give model.name="{there}"'.replace('"mixer_s_32"', "mixer_s_32")
    )
    said = architectures.check(f"jaxcls.{there}", here, built(here), as_they_are=False)
    assert told in said
    assert note(there, f"jaxcls.{there}") == ""


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("resnet50(dropout=0.5, zero_init=False, drop_path=0.1)", "resnet50"),
        ("vit_s_16(weight_init='deit', layer_scale=0.1)", "vit_s_16(layer_scale=1e-5)"),
        ("convnext_tiny(drop_path=0.5, layer_scale=0.1)", "convnext_tiny"),
        ("vit_s_16(position='sincos')", "vit_s_16"),
        ("swin_t(drop_path=0.0, window=8)", "swin_t"),
        ("convnextv2_tiny(decay_blocks=3)", "convnextv2_tiny"),
    ],
)
def test_options_of_training_are_no_difference(there, here):
    assert note(here, f"jaxcls.{there}") == ""


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("openai", "vit_base_patch32_clip_quickgelu_224"),
        ("openai_ft_in1k", "vit_base_patch32_clip_224"),
    ],
)
def test_the_tag_of_a_clip_tells_its_activation(tmp_path, tag, expected):
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors.numpy.save({"w": np.zeros(1, np.float32)}))
    told = {"architecture": "vit_base_patch32_clip_224", "pretrained_cfg": {"tag": tag}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert weights.read(str(file), "x").architecture == expected


def test_the_pool_of_a_tower_matters_for_its_head_alone():
    there, module = "vit_base_patch16_dinov3", built("dinov3_b_16")
    assert architectures.check(there, "dinov3_b_16", module, as_they_are=False) == ""


def test_weights_of_a_tower_say_which_model_they_are_of():
    module, like, tensors = zeros("vit_ti_16(depth=1)", "timm")
    tensors = {**tensors, "norm_pre.weight": np.zeros(192)}
    told = {"architecture": "vit_base_patch32_clip_quickgelu_224"}
    with pytest.raises(InputError, match=r"they are of model.name=\"clip_b_32\(gelu='qu"):
        transfer.adapt(tensors, module.namings(), like, **told)


@pytest.mark.slow
@pytest.mark.usefixtures("torchvision")
def test_the_recipe_of_each_backbone_has_weights_of_its_model():
    timm = pytest.importorskip("timm")
    recipe = runpy.run_path(str(ROOT / "configs" / "backbones.py"))
    for backbone, full in recipe["HUB"].items():
        name, _, tag = full.partition(".")
        assert timm.models.get_pretrained_cfg(name, allow_unregistered=False)
        assert full in timm.list_pretrained(f"{name}*"), full
        config = recipe["get_config"](f"{backbone},lora")
        module, there = built(config.model.name), architectures.native(name, tag)
        said = architectures.check(there, config.model.name, module, as_they_are=False)
        assert said == "", full
        ours = architectures.ours_of(there) or f"={architectures.of_timm(backbone, {})[0]}"
        assert re.search(r"=\W?(\w+)", ours)[1] in (backbone, name), full
        size = timm.get_pretrained_cfg(full).input_size[1]
        assert backbone.startswith(("dinov2", "dinov3")) or size == 224


@pytest.mark.slow
@pytest.mark.usefixtures("torchvision")
def test_clips_that_learned_with_quickgelu_are_those_that_timm_says():
    timm = pytest.importorskip("timm")
    known = architectures.TOWERS
    plain = [x for x in timm.list_models("vit_*_clip_*") if "quickgelu" not in x]
    plain = [name for name in plain if name.rpartition("_")[0] in known]
    assert len(plain) == 8
    seen = 0
    for full in timm.list_pretrained("vit_*_clip_*"):
        name, _, tag = full.partition(".")
        if name in plain:
            cfg = timm.get_pretrained_cfg(full)
            is_quick = any("QuickGELU" in note for note in cfg.notes or ())
            assert ("quickgelu" in architectures.native(name, tag)) == is_quick, full
            seen += is_quick
    assert seen > 5


def test_our_own_model_that_cannot_be_compared_is_said():
    """A plug-in's, or a newer version's; the same text is the same."""
    said = "the weights are of model.name=mine(a=1): compare the logits"
    assert note("resnet50", "jaxcls.mine(a=1)") == said
    assert architectures.check("jaxcls.mine", "mine", object()) == ""


def test_a_file_of_ours_tells_its_model_and_an_older_one_goes_on(tmp_path):
    text = "mobilenet_v2(padding='same', norm_epsilon=1e-3)"
    module, like, tensors = zeros(text, "timm")
    plain = ("mobilenet_v2", built("mobilenet_v2"))
    for model, name in ((text, "new"), ("", "old")):
        file = tmp_path / f"{name}.safetensors"
        weights.write(file, tensors, None, ("a",), model)
        read = weights.read(str(file), "x")
        given = (read.tensors, module.namings(), like)
        options = {"model": plain, "architecture": read.architecture}
        if not model:
            assert read.architecture == ""
            transfer.adapt(*given, **options)
            continue
        with pytest.raises(
            InputError, match=r"padding='same' \(here 'symmetric'\), norm_eps"
        ):
            transfer.adapt(*given, **options)
        start = transfer.adapt(*given, **options, is_head_fresh=True)
        assert "a model with padding='same' (here" in start.notes[-1]


@pytest.mark.parametrize("architecture", ["mynet50", "resnet50(aa_layer='blur')"])
def test_an_unknown_architecture_is_said(architecture):
    told = f"the weights say {architecture}, not resnet50: compare the logits"
    assert note("resnet50", architecture) == told


@pytest.mark.parametrize(
    ("text", "architecture"),
    [
        ("vit_s_16", "vit_small_patch16_224(act_layer='quick_gelu')"),
        ("vit_s_16", "vit_small_patch16_224(act_layer='gelu_tanh')"),
        ("vit_s_16(gelu='tanh')", "vit_small_patch16_224"),
        ("vit_b_16", "vit_base_patch16_clip_quickgelu_224"),
        ("vit_s_16", "vit_small_patch16_224(global_pool='avg')"),
        ("vit_s_16(pool='patch_mean')", "vit_small_patch16_224"),
        ("vit_s_16", "vit_small_patch16_224(num_heads=12)"),
        ("vit_s_16", "vit_base_patch16_224"),
        ("mixer_b_16", "mixer_b16_224(act_layer='gelu_tanh')"),
        ("clip_b_32", "vit_base_patch32_clip_224(num_heads=8)"),
        ("siglip_b_16(pool='token')", "vit_base_patch16_siglip_224(global_pool='avg')"),
        ("mixer_b_16(gelu='tanh')", "mixer_b16_224"),
        ("mixer_b_16", "mixer_s16_224"),
        ("resnet50(blur=True)", "resnet50"),
        ("swin_t", "swin_tiny_patch4_window7_224(always_partition=True)"),
        ("convnextv2_tiny", "convnextv2_tiny(act_layer='gelu_tanh')"),
        ("swin_s", "swin_base_patch4_window7_224"),
        ("mobilenet_v2", "mobilenetv2_100(bn_eps=0.001, act_layer='relu')"),
        ("mobilenet_v2", "mobilenetv2_100(pad_type='valid')"),
        ("efficientnet_v2_s", "efficientnetv2_rw_s"),
    ],
)
def test_options_of_timm_that_no_tensor_shows_are_said(text, architecture):
    told = f"the weights say {architecture}, not {text}: compare the logits"
    assert note(text, architecture) == told


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"global_pool": "max"}, "resnet50(global_pool='max')"),
        ({"global_pool": "avg", "in_chans": 1, "drop_rate": 0.1}, "resnet50"),
        ({"act\u001b[31m": 1}, "resnet50(act\\x1b[31m=1)"),
    ],
)
def test_arguments_that_change_the_network_are_part_of_its_name(
    tmp_path, arguments, expected
):
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors.numpy.save({"w": np.zeros(1, np.float32)}))
    told = {"architecture": "resnet50", "model_args": arguments}
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert weights.read(str(file), "x").architecture == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "efficientnet_b0",
            "the tensors also fit timm's tf_efficientnet_b0, which is"
            f' model.name="efficientnet_b0({TENSORFLOW})", and timm\'s'
            " efficientnet_blur_b0, which is none of ours",
        ),
        (
            "resnet18",
            "the tensors also fit timm's resnetblur18, which is none of ours",
        ),
        ("vit_s_16(depth=1)", ""),
        ("mobilenet_v2", ""),
        (
            "mobilenet_v3_large",
            "the tensors also fit timm's mobilenetv3_large_100, which is"
            ' model.name="mobilenet_v3_large(norm_epsilon=1e-05)", and timm\'s'
            " tf_mobilenetv3_large_100, which is"
            " model.name=\"mobilenet_v3_large(padding='same')\"",
        ),
    ],
)
def test_what_a_bare_file_cannot_tell_is_said(text, expected):
    assert note(text, None) == expected


def zeros(text, library):
    """(module, its shapes, zeros by a library's names)."""
    module = built(text)
    like = shapes(module, 32)[1]
    made = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), like)
    return module, like, naming.to_theirs(made, module.namings()[library])


@pytest.mark.slow
@pytest.mark.parametrize(("library", "is_told"), [("torchvision", False), ("timm", True)])
def test_names_that_one_library_alone_has_tell_the_network(library, is_told):
    module, like, tensors = zeros("efficientnet_b0", library)
    start = transfer.adapt(
        tensors, module.namings(), like, model=("efficientnet_b0", module)
    )
    assert any("also fit" in each for each in start.notes) == is_told


def test_a_config_beside_the_file_is_heeded(tmp_path):
    text = "resnet18(width=8)"
    *_, tensors = zeros(text, "timm")
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors.numpy.save(tensors))
    values = {"model.name": text, "init.weights": str(file), "mesh.devices": 1}
    config = loading.from_flat({**values, "data.name": "absent"})
    facts = sources.Facts("absent", "", (32, 32, 3), 1000, (), {"train": 500})
    (told,) = experiment.build(config, facts).initial.notes
    assert told.endswith(
        "names; the tensors also fit timm's resnetblur18, which is none of ours"
    )
    beside = tmp_path / "config.json"
    beside.write_text(json.dumps({"architecture": "resnetblur18"}))
    with pytest.raises(InputError, match=r"resnet18\(width=8\): it is of resnetblur18, wh"):
        _ = experiment.build(config, facts).initial
    arguments = {"aa_layer": "blur", "in_chans": 3, "drop_rate": 0.1}
    beside.write_text(json.dumps({"architecture": "resnet18", "model_args": arguments}))
    (told,) = experiment.build(config, facts).initial.notes
    said = f"the weights say resnet18(aa_layer='blur'), not {text}: compare the logits"
    assert told.endswith(said)


@pytest.mark.slow
@pytest.mark.usefixtures("torchvision")
def test_each_of_the_others_fits_and_differs():
    """timm's own networks: the tensors of one load into the other, whose logits differ."""
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    pairs = [(ours, each) for ours, all in architectures.OTHERS.items() for each in all]
    for ours, other in [*pairs, ("efficientnet_b0", "tf_efficientnet_b0")]:
        torch.manual_seed(0)
        models = [timm.create_model(name).eval() for name in (ours, other)]
        for tensor in models[0].parameters():
            is_scale = tensor.ndim == 1
            torch.nn.init.normal_(tensor.data, float(is_scale), 0.1)
        models[1].load_state_dict(models[0].state_dict(), strict=True)
        with torch.no_grad():
            images = torch.randn(1, 3, 64, 64)
            logits = [model(images) for model in models]
        apart = (logits[0] - logits[1]).abs().max()
        assert apart > 1e-2 * logits[0].abs().max(), other
