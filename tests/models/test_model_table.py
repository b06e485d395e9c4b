"""The table of models in docs/ is what its command prints, and what others publish."""

import functools
import itertools
import re

import numpy as np
import pytest

from benchmarks import models
from jaxcls.models import MODELS, naming
from jaxcls.models.efficientnet import EFFICIENTNETS
from jaxcls.models.mobilenet import MOBILENETS
from jaxcls.models.weights import architectures
from tests.conftest import ROOT
from tests.modules import built

HUB = "hf:timm/"
VISION = "torchvision "
# Of importing what the slow tests compare with.
ignores_torch = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


costs = functools.cache(models.costs)


def shared_names(torchvision):
    """The names of our table that torchvision has."""
    theirs = torchvision.models.list_models(torchvision.models)
    return [name for name in models.NAMES if name in theirs]


def check_fit(name, library, model):
    """Each tensor of theirs has a place of its shape in ours, and none is left."""
    tensors = {
        key: np.broadcast_to(np.float32(0), tuple(tensor.shape))
        for key, tensor in model.state_dict().items()
    }
    fit = naming.fit(tensors, built(name).namings()[library], costs(name).variables)
    assert (fit.missing, fit.extra, fit.shapes) == ({}, [], {}), name


@pytest.mark.slow
def test_the_documents_table_is_what_the_command_prints(monkeypatch, capsys):
    assert sorted(models.NAMES) == sorted(MODELS.keys() - {"cnn"})
    monkeypatch.setattr(models, "costs", costs)
    models.main()
    readme = (ROOT / "docs/reference/models.md").read_text()
    (shown,) = re.findall(r"<!-- models -->\n(.*?)<!-- /models -->", readme, re.DOTALL)
    assert shown.strip() == capsys.readouterr().out.strip()


@pytest.mark.slow
@ignores_torch
def test_costs_are_torchvisions(torchvision):
    shared = shared_names(torchvision)
    assert len(shared) == 39
    for name in shared:
        stated = torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta
        assert costs(name).parameters == stated["num_params"], name
        # They count as we do, the products of attention too, and keep three decimals.
        giga = costs(name).multiply_adds / 1e9
        assert giga == pytest.approx(stated["_ops"], abs=0.001), name


@pytest.mark.slow
@ignores_torch
def test_torchvisions_top1_is_the_best_that_it_states_at_these_pixels(torchvision):
    for name in shared_names(torchvision):
        stated = {
            weights.name: weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
            for weights in torchvision.models.get_model_weights(name)
            if weights.transforms.keywords["crop_size"] == models.SIZES.get(name, 224)
            and "SWAG" not in weights.name
            and weights.meta["categories"]
        }
        best = max(stated, key=stated.get)
        assert models.PUBLISHED[name] == (f"{VISION}{best}", stated[best])


@pytest.mark.slow
@ignores_torch
def test_timms_weights_are_in_its_registry_and_of_the_very_architecture(torchvision):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    named = {
        name: weights.removeprefix(HUB)
        for name, (weights, _) in models.PUBLISHED.items()
        if weights.startswith(HUB)
    }
    of_timm = {"vit_ti_16", "vit_s_16", "vit_s_32", "mixer_b_16", "efficientnet_lite0"}
    of_timm |= {"clip_b_32", "clip_b_16", "clip_l_14"}
    of_timm |= {name for name in MODELS if name.startswith("convnextv2")}
    assert set(named) == of_timm
    for name, theirs in named.items():
        assert timm.list_pretrained(theirs) == [theirs]
        registered = timm.get_pretrained_cfg(theirs)
        assert f"hf:{registered.hf_hub_id}" == HUB + theirs
        assert (registered.input_size, registered.num_classes) == ((3, 224, 224), 1000)
        with torch.device("meta"):
            model = timm.create_model(theirs)
        check_fit(name, "timm", model)


@pytest.mark.slow
@ignores_torch
def test_the_least_tower_of_each_form_has_the_tensors_of_timms(torchvision):
    # The larger ones have as many parameters as timm's: see test_models.
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    for name in ("dinov2_s_14", "dinov2_s_14_reg4", "dinov3_s_16", "siglip_b_16"):
        with torch.device("meta"):
            there = architectures.of_timm(name, {}).architecture
            model = timm.create_model(there, img_size=224, num_classes=1000)
        check_fit(name, "timm", model)


@pytest.mark.slow
@ignores_torch
def test_each_mobile_has_the_layers_of_timms(torchvision):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    for name in (*EFFICIENTNETS, *MOBILENETS):
        with torch.device("meta"):
            model = timm.create_model(architectures.of_timm(name, {}).architecture)
        check_fit(name, "timm", model)
        # No shape tells a stride.
        theirs = [
            (module.stride[0], module.kernel_size[0])
            for module in model.modules()
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size[0] > 1
        ]
        assert theirs == [(2, 3), *_squares(built(name))]


def _squares(module):
    """(stride, size of the kernel) of each block, in order."""
    for block in itertools.chain(*module.net.stages):
        yield block.stride, block.kernel


@pytest.mark.slow
@ignores_torch
def test_torchvisions_weights_are_of_the_very_architecture(torchvision):
    torch = pytest.importorskip("torch")
    for name in shared_names(torchvision):
        with torch.device("meta"):
            model = torchvision.models.get_model(name)
        check_fit(name, "torchvision", model)
