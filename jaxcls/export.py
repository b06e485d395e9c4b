"""A trained run -> a file for others. ``python -m jaxcls.export --workdir=RUN``.

One format so far: "safetensors", which torchvision or timm load with ``strict=True``.
"""

import inspect
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcls import cli, decode, evaluate, experiment, pipeline, transfer, weights
from jaxcls.errors import InputError, lookup
from jaxcls.models import naming
from jaxcls.weights import Preprocessing
from jaxcls.workdir import Workdir


def to_safetensors(
    exp: experiment.Experiment,
    saved: Mapping[str, Any],
    path: pathlib.Path,
    library: str = "",
) -> int:
    """Write a run's weights by a library's names; returns how many arrays there are.

    saved: {"params", "batch_stats", "ema"}; of these, what predictions are made with.
    library: one that has the model; "": its first. The preprocessing and class names go
    into the file's metadata. Raises `InputError` for a library that lacks the model or a
    file that exists, and RuntimeError, leaving no file, where it does not read back.
    """
    namings = exp.module.namings()
    table = lookup(namings, library, "--names") if library else next(iter(namings.values()))
    variables = exp.variables(dict(saved))
    tensors = naming.to_theirs(variables, table)
    weights.write(path, tensors, preprocessing(exp), exp.data.class_names)
    try:
        read = weights.read(str(path), "--out")
        start = transfer.adapt(read.tensors, {library: table}, exp.variables_like)
        ours = naming.flatten(variables)
        if not all(np.array_equal(start.arrays[name], ours[name]) for name in ours):
            raise InputError("the arrays differ")
    except InputError as error:
        path.unlink()
        raise RuntimeError(f"{path} did not read back as it was written: {error}") from None
    return len(tensors)


def preprocessing(exp: experiment.Experiment) -> Preprocessing | None:
    """What images a run's model takes; None where its eval_ops are of another form.

    That is: decode, then resize to the size that the model sees or to more of which the
    centre is cut out, by a filter that others have.
    """
    height, width, channels = exp.data.eval_shape
    calls = pipeline.parse(exp.config.data.eval_ops, "data.eval_ops")
    if [call.name for call in calls] not in _FORMS or height != width:
        return None
    resized = calls[1]
    bound = inspect.signature(decode.OPS[resized.name]).bind(
        *resized.args, **resized.kwargs
    )
    bound.apply_defaults()
    size, kind = bound.arguments["size"], _FILTERS.get(bound.arguments["filter"])
    if kind is None or not isinstance(size, int) or size < height:
        return None
    black, white = (
        np.asarray(exp.normalize(jnp.full((1, 1, 1, channels), v, jnp.uint8))).reshape(-1)
        for v in (0, 255)
    )
    if not (white > black).all():
        return None  # Each image by its own pixels, which no mean and deviation says.
    crop = height / size
    while math.floor(height / crop) < size:  # As others find the size again.
        crop = math.nextafter(crop, 0)
    std = 1 / (white.astype(np.float64) - black)
    mean = -black * std
    return Preprocessing(
        tuple(np.round(mean, 6).tolist()),
        tuple(np.round(std, 6).tolist()),
        height,
        crop,
        kind,
        "center" if resized.name == "resize_short" else "squash",
    )


_FILTERS = {"linear": "bilinear", "bilinear": "bilinear", "bicubic": "bicubic"}
_FORMS = [
    ["decode", "resize_short", "center_crop"],
    ["decode", "resize", "center_crop"],
    ["decode", "resize"],
]


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    parser = cli.Parser("export", "Write the weights of a trained run for other libraries.")
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument(
        "--checkpoint", default="best", help="best (default), last or a step"
    )
    parser.add_argument(
        "--format", default="safetensors", help="safetensors (the only one so far)"
    )
    parser.add_argument(
        "--names",
        default="",
        help="whose names the arrays get: torchvision, timm, ...; default: the first that"
        " has the model",
    )
    parser.add_argument("--out", default="", help="file to write; default: beside the run")
    args = parser.parse_args(argv)
    if args.format != "safetensors":
        raise InputError(f"--format={args.format} is not written; try --format=safetensors")
    folder = Workdir(args.workdir).path
    out = pathlib.Path(args.out or folder.with_name(f"{folder.name}.safetensors"))
    if out.suffix != ".safetensors":
        raise InputError(f"--out={out} must end in .safetensors")
    exp, step, at, saved = evaluate.load(args.workdir, args.checkpoint, {})
    try:
        arrays = to_safetensors(exp, saved, out, args.names)
    except RuntimeError as error:
        print(error)
        return cli.DIFFERS
    library = args.names or next(iter(exp.module.namings()))
    print(f"done: step={step} at={at} arrays={arrays} names={library} in {out}")
    return cli.DONE


if __name__ == "__main__":
    cli.run(main)
