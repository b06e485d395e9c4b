"""Every config takes two steps at its real image size, on two random images."""

import pathlib
import re

import jax
import numpy as np
import pytest

from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.data import sources
from jaxcls.data.batch import Batch
from jaxcls.models import weights
from tests.golden import configs
from tests.modules import zeros_of
from tests.test_laws import PHOTOS, ROOT

# Of these a sibling is run, which differs in numbers alone; of two tutorials it is the
# recipe with the same model: finetune, alexnet.
SIBLINGS = {
    "backbones.py:convnextv2_tiny,lora",  # As swin_t,lora.
    "tutorial_alexnet.py",
    "tutorial_transfer.py",
    "cifar10_fast.py:cifar10_jpeg",
    "tutorial_cifar10.py:cifar10_jpeg",
    "tutorial_resnet.py:cifar10_jpeg",
    "resnet50_rsb.py:a1",
    "resnet50_rsb.py:a3",
    "vit_s16.py:300",
    "cifar_wrn.py:cifar100",
    "vgg16.py",  # As alexnet; its dense layers alone take 40 s.
}
# Blocks that are alike are fewer here: the whole models are lowered with their recipes in
# test_laws.
FEWER = {
    "resnet18": "stages=(1, 1)",
    "resnet50": "stages=(1, 1)",
    "convnext_tiny": "stages=(1, 1)",
    "vit_s_16": "depth=1",
    "dinov2_s_14": "depth=1",
    "swin_t": "stages=(1, 1, 1, 1)",
    "mixer_b_16": "depth=1",
    "wrn28_10": "depth=10",
}
SMALL = "resnet18(stages=(1, 1))"
NAMES = [name for name in configs() if name not in SIBLINGS]
pytestmark = pytest.mark.slow


def random_batch(exp, shape, seed):
    """Two random images and labels, where the mesh is."""
    rng = np.random.default_rng(seed)
    size = exp.config.batch_size
    labels = rng.integers(0, exp.selection.num_classes, size)
    batch = Batch(
        image=rng.integers(0, 256, (size, *shape)).astype(np.uint8),
        label=labels.astype(np.int32),
        index=np.arange(size, dtype=np.int32),
        epoch=np.zeros(size, np.int32),
    )
    return jax.device_put(batch, exp.mesh.devices.flat[0])


def shallow(text):
    """``"vit_s_16(drop_path=0.1)"`` -> ``"vit_s_16(drop_path=0.1, depth=2)"``."""
    name, _, options = text.partition("(")
    given = [options.removesuffix(")"), FEWER.get(name, "")]
    return f"{name}({', '.join(filter(None, given))})"


@pytest.mark.parametrize("name", NAMES)
def test_a_config_takes_two_steps_at_its_real_size(name, tmp_path, monkeypatch):
    given = {"batch_size": "2", "mesh.devices": "1", "optim.lr_per": "0"}
    given["model.batch_norm_groups"] = "1"
    loaded = loading.load(str(ROOT / "configs" / name), given)
    is_finetune = name.startswith("finetune")
    loaded.model.name = SMALL if is_finetune else shallow(loaded.model.name)
    if has_weights := is_finetune or name.startswith("backbones"):
        loaded.init.weights = str(tmp_path / "small.safetensors")
        told = weights.Preprocessing((0.5,) * 3, (0.5,) * 3, 224, 0.875, "bicubic")
        zeros = zeros_of(loaded.model.name, "timm")
        weights.write(pathlib.Path(loaded.init.weights), zeros, told, ())
    loaded.mix = re.sub(r", groups=\d+", "", loaded.mix)  # They do not divide 2 rows.
    facts = sources.published_facts(loaded.data.name.removesuffix("_jpeg")) or PHOTOS
    used = loading.plugins_of(str(ROOT / "configs" / name), loaded)
    exp = experiment.build(loaded, facts, plugins=used)
    shape = exp.data.train_shapes[0]
    sample = random_batch(exp, shape, 2).image
    monkeypatch.setattr(exp.data, "sample", lambda count: np.asarray(sample))
    # Where warm-up begins at 0, the first step would move nothing.
    state = exp.init()._replace(step=jax.numpy.int32(exp.plan.warmup))
    before = jax.tree.map(np.asarray, state.params)
    for seed in range(2):
        state, record = exp.programs.train_step(state, random_batch(exp, shape, seed))
        assert bool(record["finite"])
        assert 0 < float(record["loss"]) < 800
        assert float(record["lr"]) > 0
    after = jax.tree.map(np.asarray, state.params)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    # What is frozen stays, and a bias before a norm may have no gradient; of weights that
    # are all 0, as here a file's, only the head has one.
    assert np.mean(jax.tree.leaves(moved)) > (0 if has_weights else 0.6)
    assert int(state.step) == exp.plan.warmup + 2
