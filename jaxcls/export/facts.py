"""The content of model.json, independent of format: input, labels, provenance."""

import inspect
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcls import experiment
from jaxcls.config import calls
from jaxcls.errors import InputError
from jaxcls.export.formats.model import Model
from jaxcls.learning.metrics import AVERAGED
from jaxcls.models import weights
from jaxcls.models.weights import Preprocessing
from jaxcls.models.weights.facts import crop_of
from jaxcls.runs import digests, records
from jaxcls.runs.workdir import Workdir


def preprocessing(exp: experiment.Experiment) -> Preprocessing | None:
    """Returns the preprocessing in the form of other libraries; None if no form fits.

    Other libraries can do this: decode, resize by a filter of theirs to the model's size,
    or to a larger size with a center crop, and normalise with a fixed mean and deviation.
    """
    height, width, channels = exp.data.eval_shape
    ops = calls.parse(exp.config.data.eval_ops, "data.eval_ops")
    names = [call.name for call in ops]
    if " | ".join(names) not in _FORMS or height != width:
        return None
    given = _bound(ops[1], exp.data.host_ops[ops[1].name])
    size, kind = given["size"], _FILTERS.get(given["filter"])
    if kind is None or not isinstance(size, int) or size < height:
        return None
    levels = jnp.array([0, 255], jnp.uint8)[:, None, None, None]
    pixels = jnp.broadcast_to(levels, (2, 1, 1, channels))
    black, white = np.asarray(exp.recipe.normalize(pixels), np.float64)[:, 0, 0]
    if not (white > black).all():
        return None  # The normalisation depends on the image: no fixed mean and deviation.
    std = 1 / (white - black)
    mean = 0.0 - black * std  # No -0.0.
    return Preprocessing(
        tuple(np.round(mean, 6).tolist()),
        tuple(np.round(std, 6).tolist()),
        height,
        crop_of(height, size),
        kind,
        "center" if "resize_short" in names else "squash",
    )


# OpenCV's "linear" is none of them: it is not antialiased.
_FILTERS = {"bilinear": "bilinear", "bicubic": "bicubic"}
_FORMS = (
    "decode | resize_short | center_crop",
    "decode | resize | center_crop",
    "decode | resize",
)


def steps(exp: experiment.Experiment) -> list[dict[str, Any]]:
    """Returns data.eval_ops as a list of {"op": name, argument: value}; sizes in pixels.

    Raises `InputError` for a random op.
    """
    if drawn := exp.data.random_op("eval_ops"):
        raise InputError(
            f"data.eval_ops draws at random ({drawn}), and an export has one answer"
            " for an image; export a run whose eval_ops do not"
        )
    found = []
    for call in calls.parse(exp.config.data.eval_ops, "data.eval_ops"):
        given = _bound(call, exp.data.host_ops[call.name])
        if call.name != "resize_short" and "size" in given:
            given["height"], given["width"] = np.broadcast_to(given.pop("size"), 2).tolist()
        found.append({"op": call.name, **given})
    return found


def _bound(call: calls.Call, op: Callable[..., Any]) -> dict[str, Any]:
    """Returns the arguments of a host op by name, with defaults."""
    bound = inspect.signature(op).bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def described(
    exp: experiment.Experiment, folder: Workdir | None, step: int, at: str, model: Model
) -> dict[str, Any]:
    """Returns the entries of model.json that do not depend on the format.

    folder: of the run; None for published weights. step, at: of the checkpoint; `at` is
    such as "best".
    """
    height, width, channels = model.image_shape
    told = model.preprocessing
    saves = records.read(folder.digests) if folder else []
    kept = [each["digest"] for each in saves if each["step"] == step]
    return {
        "model": model.name,
        "input": {
            "name": "images",
            "dtype": "uint8",
            "layout": "NHWC",
            "height": height,
            "width": width,
            "channels": channels,
            "order": "RGB" if channels == 3 else "grey",
            "range": [0, 255],
            "normalize": f"{exp.config.normalize}, inside the model",
        },
        "preprocessing": {
            "text": exp.config.data.eval_ops,
            "steps": steps(exp),
            "as_others": told._asdict() if told else None,
        },
        "output": {
            "name": "logits",
            "dtype": "float32",
            "classes": len(model.class_names),
            "link": exp.recipe.link,
        },
        "labels": list(model.class_names),
        **({"data": _trained_on(exp)} if folder else {}),
        "checkpoint": {"step": step, "is": at, **(_weights if folder else _origin)(exp)},
        "evaluations": _evaluations(folder, step) if folder else [],
        "digest": digests.combine(digests.of_tree(dict(model.variables))),
        "state_digest": kept[-1] if kept else None,
    }


def _trained_on(exp: experiment.Experiment) -> dict[str, str]:
    """Returns the dataset of a run and its splits."""
    return {
        "name": exp.config.data.name,
        "fingerprint": exp.selection.facts.fingerprint,
        **{role: exp.config.data[role] for role in ("train", "eval", "test")},
    }


def _weights(exp: experiment.Experiment) -> dict[str, str]:
    """Returns which weights of a checkpoint predict."""
    is_average = exp.recipe.is_averaged and exp.config.best.metric.startswith(AVERAGED)
    return {"weights": "ema" if is_average else "params"}


def _origin(exp: experiment.Experiment) -> dict[str, str]:
    """Returns where published weights are from."""
    assert exp.initial
    place = exp.config.init.weights
    name = place if weights.is_hub(place) else pathlib.Path(place).name
    return {"init.weights": name, "fingerprint": exp.initial.fingerprint}


def _evaluations(folder: Workdir, step: int) -> list[dict[str, Any]]:
    """Returns the evaluations in metrics.jsonl of the state at a step."""
    of_state = {"eval": "step", "final": "best_step"}  # "final" without it scores the last.
    return [
        record
        for record in records.read(folder.metrics)
        if str(record.get("kind")) in of_state
        and record.get(of_state[record["kind"]], record["step"]) == step
    ]
