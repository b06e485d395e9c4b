"""Our ONNX file in onnxruntime, over torch.onnx's of the same weights:
``python -m benchmarks.onnx``.

One thread, one image, processor time, in which other work counts least; the files' runs
alternate. Ours takes uint8 pixels and normalises them inside, torch's takes normalised
ones. torch's is of its exporter by tracing, which needs no further package. A ratio above 1
is how many times as long ours takes.
"""

import argparse
import pathlib
import statistics
import tempfile
import time
import warnings
from typing import Any

import jax
import numpy as np
import onnxruntime
import torch

from benchmarks import measuring, reference
from jaxcls.export.formats import onnx
from jaxcls.export.formats.model import Asked, Model
from jaxcls.models import creating, naming

MODELS = ("mobilenet_v2", "resnet18")
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def ours(name: str, size: int, path: pathlib.Path) -> dict[str, np.ndarray]:
    """Writes a model of random weights; returns them by torchvision's names."""
    shape = (size, size, 3)
    module, variables = creating.create(name, 1000, image_shape=shape)
    rng = np.random.default_rng(0)

    def drawn(path: Any, x: jax.Array) -> Any:  # No 0 and no 1, which cost less.
        noise = 0.0 if path[-1].key == "kernel" else rng.uniform(0, 0.5, x.shape)
        return np.asarray(x + noise, np.float32)

    variables = jax.tree_util.tree_map_with_path(drawn, variables)
    namings = module.namings()

    def apply(variables: Any, images: jax.Array) -> jax.Array:
        return module.apply(variables, (images / 255.0 - MEAN) / STD, False).logits

    names = tuple(map(str, range(1000)))
    onnx.write(Model(name, apply, variables, shape, names, namings, None), path, Asked())
    return naming.to_theirs(variables, namings["torchvision"])


def theirs(
    name: str, size: int, path: pathlib.Path, weights: dict[str, np.ndarray]
) -> None:
    """Writes torchvision's model with weights by torch.onnx."""
    model = reference.model_of(name, {}, 1000).eval()
    model.load_state_dict({key: torch.tensor(x) for key, x in weights.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(2, 3, size, size),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}},
        )


def session(path: pathlib.Path) -> onnxruntime.InferenceSession:
    """Returns the program of a file on one thread, with onnxruntime's defaults."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])


def measured(name: str, size: int, segments: int, runs: int) -> str:
    """Returns what a model's two files take, as a line."""
    pixels = np.random.default_rng(1).integers(0, 256, (1, size, size, 3), np.uint8)
    images = np.moveaxis((pixels / np.float32(255) - MEAN) / STD, 3, 1)
    with tempfile.TemporaryDirectory() as folder:
        paths = pathlib.Path(folder) / "ours.onnx", pathlib.Path(folder) / "theirs.onnx"
        theirs(name, size, paths[1], ours(name, size, paths[0]))
        sides = tuple(map(session, paths))
    inputs = {"images": pixels}, {"images": np.ascontiguousarray(images)}
    logits = [side.run(None, given)[0] for side, given in zip(sides, inputs, strict=True)]
    apart = np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max()
    ratios: list[float] = []
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(segments):
        taken: list[list[float]] = [[], []]
        for _ in range(runs):
            for of, side, given in zip(taken, sides, inputs, strict=True):
                began = time.process_time()
                side.run(None, given)
                of.append(time.process_time() - began)
        middles = [statistics.median(each) for each in taken]
        ratios.append(middles[0] / middles[1])
        for of, middle in zip(seconds, middles, strict=True):
            of.append(middle)
    return (
        f"{name}, {size} pixels: ours / torch.onnx {measuring.spread(ratios)};"
        f" {measuring.spread(seconds[0], ',.1f', 1e3)} and"
        f" {measuring.spread(seconds[1], ',.1f', 1e3)} ms; logits {apart:.1g} apart"
    )


def main() -> None:
    """Prints a ratio a model, and what it was measured on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="of torchvision")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--segments", type=int, default=5)
    parser.add_argument("--runs", type=int, default=15, help="of a file in a segment")
    args = parser.parse_args()
    print(
        f"on {measuring.machine(jax.devices()[0])}, onnxruntime {onnxruntime.__version__},"
        f" torch {torch.__version__}, one thread"
    )
    for name in args.models.split(","):
        print(measured(name, args.size, args.segments, args.runs), flush=True)


if __name__ == "__main__":
    main()
