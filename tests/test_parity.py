"""The same weights give the same logits here and in torchvision's own models.

Needs torch and torchvision (Python 3.11: ``pip install -e ".[parity]"``, then
``pip install --no-deps torchvision==0.28.0``); .ci/run installs them.
"""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.models import MODELS

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def torchvision():
    """torchvision's models, whose compiled operators do not load without CUDA."""
    for name in ("_meta_registrations", "_autograd_registrations"):
        sys.modules[f"torchvision.{name}"] = types.ModuleType(name)
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip("torchvision")


def reference(torchvision, name, num_classes):
    """torchvision's model in evaluation mode, with no parameter left at 0 or 1."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=num_classes).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.02)
            torch.nn.init.normal_(module.bias)
    return model


def of_layer(module):
    """The parameters of one layer of torch's in our form: HWIO and IO kernels."""
    weight = module.weight.detach()
    if isinstance(module, torch.nn.BatchNorm2d):
        return {"scale": weight.numpy(), "bias": module.bias.detach().numpy()}
    order = (2, 3, 1, 0) if weight.ndim == 4 else (1, 0)
    return {
        "kernel": weight.permute(*order).numpy(),
        "bias": module.bias.detach().numpy(),
    }


def converted(model, conv_names, side):
    """Variables of AlexNet or a VGG, by the order of torch's layers."""
    params, batch_stats = {}, {}
    names = iter(conv_names)
    for module in model.features:
        if isinstance(module, torch.nn.Conv2d):
            name = next(names)
            params[name] = of_layer(module)
        elif isinstance(module, torch.nn.BatchNorm2d):
            params[f"{name}_norm"] = of_layer(module)
            batch_stats[f"{name}_norm"] = {
                "mean": module.running_mean.numpy(),
                "var": module.running_var.numpy(),
            }
    dense = [each for each in model.classifier if isinstance(each, torch.nn.Linear)]
    for name, module in zip(("dense1", "dense2", "head"), dense, strict=True):
        params[name] = of_layer(module)
    # Torch flattens channels first, and we positions first.
    kernel = params["dense1"]["kernel"]
    by_channel = kernel.reshape(-1, side, side, kernel.shape[1])
    params["dense1"]["kernel"] = by_channel.transpose(1, 2, 0, 3).reshape(kernel.shape)
    return {"params": params, "batch_stats": batch_stats}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("alexnet", 224),
        ("alexnet", 130),
        ("vgg11", 224),
        ("vgg13_bn", 50),
        ("vgg16", 64),
        ("vgg19_bn", 64),
    ],
)
def test_logits_are_torchvisions(torchvision, name, size):
    model, ours = reference(torchvision, name, 10), MODELS[name](num_classes=10)
    images = torch.randn(2, 3, size, size)
    like = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    made = jax.eval_shape(lambda x: ours.init(jax.random.key(0), x, False), like)
    names = sorted(k for k in made["params"] if "conv" in k and not k.endswith("_norm"))
    variables = converted(model, names, side=6 if name == "alexnet" else 7)
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(
        lambda leaf: leaf.shape, made["params"]
    )
    with torch.no_grad():
        expected = model(images).numpy()
    got = ours.apply(variables, jnp.asarray(images.permute(0, 2, 3, 1).numpy()), False)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
