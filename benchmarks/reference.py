"""The training step of a benchmark in PyTorch: a model of torchvision's or timm's.

Channels last, SGD with a fused update, autocast where the precision is bfloat16, and
compiled where torch.compile can; with as many threads as XLA has. Imports torch.
"""

import sys
import time
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from jaxcls.data import batches

# Ours -> (library, their name, options that make it ours).
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "resnet18": ("torchvision", "resnet18", {}),
    "resnet50": ("torchvision", "resnet50", {}),
    "mobilenet_v2": ("torchvision", "mobilenet_v2", {}),
    "vit_s_16": ("timm", "vit_small_patch16_224", {}),
    "vit_b_16": ("torchvision", "vit_b_16", {}),
    "convnext_tiny": ("torchvision", "convnext_tiny", {"stochastic_depth_prob": 0.0}),
}


class Reference(NamedTuple):
    """A step of PyTorch's. run: (steps) does them; first_seconds: the first one took."""

    label: str
    parameters: int
    first_seconds: float
    run: Callable[[int], None]


def model_of(name: str, options: Mapping[str, Any], classes: int) -> torch.nn.Module:
    """The counterpart of our model `name`; its `options` may be {"stem": "small"}.

    Raises `KeyError` for one that has none here.
    """
    library, theirs, given = MODELS[name]
    unknown = set(options) - {"stem"}
    if unknown:
        raise KeyError(f"{name} with {', '.join(unknown)}")
    models = _torchvision() if library == "torchvision" else _timm()
    model = models(theirs, num_classes=classes, **given)
    if options.get("stem") == "small":
        width = model.conv1.out_channels
        model.conv1 = torch.nn.Conv2d(3, width, 3, padding=1, bias=False)
        model.maxpool = torch.nn.Identity()
    return model


def _torchvision() -> Callable[..., Any]:
    """Its models by name; its compiled operators, which no model needs, may not load."""
    if "torchvision" not in sys.modules:
        for name in ("_meta_registrations", "_autograd_registrations"):
            module = f"torchvision.{name}"
            sys.modules[module] = types.ModuleType(module)
    from torchvision import models

    return lambda name, **options: getattr(models, name)(**options)


def _timm() -> Callable[..., Any]:
    _torchvision()  # Which timm imports.
    import timm

    return timm.create_model


def reference(
    name: str,
    options: Mapping[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    precision: str,
    learning_rate: float,
    weight_decay: float,
    how: str,
) -> Reference:
    """The step on one batch, images uint8 [B, H, W, C], on torch's accelerator if any.

    how: "compiled", "eager", or "auto", which is compiled on CUDA. Raises `KeyError` where
    the model has no counterpart.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(batches.cores())
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # TF32, which is XLA's default too.
    model = model_of(name, options, classes).to(device).train()
    model = model.to(memory_format=torch.channels_last)
    parameters = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.SGD(
        model.parameters(),
        learning_rate,
        momentum=0.9,
        weight_decay=weight_decay,
        fused=True,
    )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
    targets = torch.from_numpy(labels).long().to(device)

    def step_of(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        is_mixed = precision == "bfloat16"

        def step() -> None:
            inputs = pixels.to(torch.float32).div_(255.0)
            with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):
                loss = torch.nn.functional.cross_entropy(forward(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    step, mode, began = step_of(model), "eager", time.perf_counter()
    if how == "compiled" or (how == "auto" and device.type == "cuda"):
        step, mode = _compiled(step_of(torch.compile(model)), step)
    run = _runs(step, device)
    run(1)
    threads = torch.get_num_threads()
    label = f"PyTorch {torch.__version__}, {mode}, channels last, {threads} threads"
    return Reference(label, parameters, time.perf_counter() - began, run)


def _compiled(
    compiled: Callable[[], None], eager: Callable[[], None]
) -> tuple[Callable[[], None], str]:
    """(the compiled step, or the other where it cannot be; which one it is in words)."""
    try:
        compiled()
    except Exception as error:  # Of many kinds: no C++ compiler, no Triton, its own bugs.
        why = next(iter(str(error).strip().splitlines()), "")
        return eager, f"eager (torch.compile fails: {type(error).__name__}: {why[:80]})"
    return compiled, "compiled"


def _runs(step: Callable[[], None], device: torch.device) -> Callable[[int], None]:
    def run(steps: int) -> None:
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run
