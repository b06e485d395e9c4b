"""A folder as Hugging Face's hub has it: timm and transformers load weights and labels."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcls import atomic
from jaxcls.errors import InputError
from jaxcls.evaluation import intervals
from jaxcls.export.formats import safetensors, timm
from jaxcls.export.formats.model import Asked, Model, Program
from jaxcls.learning.metrics import AVERAGED
from jaxcls.models import naming
from jaxcls.models.naming import Entry
from jaxcls.models.weights import Preprocessing

ABOUT = "a folder for a Hugging Face hub: timm and transformers load it"
NEEDS: dict[str, str] = {}
FILE = "model.safetensors"
# Metrics that are shares of hits, whose intervals are Wilson's.
_HITS = ("top1", "top5")


def write(model: Model, path: pathlib.Path, asked: Asked) -> dict[str, Any]:
    """Writes the weights by timm's names, and beside them config.json and README.md.

    Returns the architecture of timm's and the number of arrays. Raises `InputError` if timm
    has no such model, or cannot do its preprocessing, and for probabilities of a sigmoid.
    """
    link = model.about.get("output", {}).get("link", "softmax")
    if link != "softmax":
        raise InputError(
            f"--format=hub is read by transformers, which takes a softmax, and the loss of"
            f" the run means a {link} of each logit; try --format=onnx"
        )
    theirs = timm.counterpart(model.name, model.image_shape)
    told = model.preprocessing
    if told is None:
        raise InputError(
            "--format=hub tells timm how to preprocess, and it cannot do that of this run;"
            " try data.eval_ops='decode | resize_short(256) | center_crop(224)'"
        )
    facts = safetensors.write(model, path, Asked(names="timm"))
    config = _config(model, theirs, told)
    atomic.write_json(path.with_name("config.json"), config)
    atomic.write(path.with_name("README.md"), _card(model, theirs, told, asked.license))
    return {**facts, "architecture": theirs.architecture, "license": asked.license}


def load(model: Model, path: pathlib.Path, facts: Mapping[str, Any]) -> Program:
    """Returns the jaxcls model with the arrays of the file, as `safetensors.load` does."""
    return safetensors.load(model, path, facts)


def example(_model: Model, _facts: Mapping[str, Any]) -> None:
    """Returns None: README.md says how it is loaded."""


def _config(model: Model, theirs: timm.Counterpart, told: Preprocessing) -> dict[str, Any]:
    """Returns the content of config.json, as timm's own `save_for_hf` gives it."""
    height, width, channels = model.image_shape
    table = model.namings["timm"]
    # timm replaces these two for other channels and classes.
    first, head = (_theirs(table[ours]) for ours in (next(iter(table)), "head"))
    return {
        "architecture": theirs.architecture,
        "num_classes": len(model.class_names),
        "label_names": list(model.class_names),
        **({"model_args": theirs.args} if theirs.args else {}),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [channels, height, width],
            "fixed_input_size": theirs.architecture.startswith(("vit", "mixer", "swin")),
            "interpolation": told.interpolation,
            "crop_pct": told.crop,
            "crop_mode": told.crop_mode,
            "mean": list(told.mean),
            "std": list(told.std),
            "num_classes": len(model.class_names),
            "pool_size": None,
            "first_conv": first,
            "classifier": head,
        },
    }


def _theirs(entry: str | Entry) -> str:
    return entry.name if isinstance(entry, Entry) else entry


def _card(model: Model, theirs: timm.Counterpart, told: Preprocessing, license: str) -> str:
    """Returns README.md: a model card, as the hub reads it."""
    about = model.about
    size = sum(np.size(each) for each in naming.flatten(model.variables).values())
    checkpoint = about.get("checkpoint", {})
    is_trained_here = "init.weights" not in checkpoint
    return _CARD.format(
        license=license,
        ours=model.name,
        shape=model.image_shape,
        name=_quoted(model.name),
        architecture=theirs.architecture,
        arguments=f", with {_quoted(json.dumps(theirs.args))}" if theirs.args else "",
        parameters=f"{size:,}",
        classes=len(model.class_names),
        labels=", ".join(map(_quoted, model.class_names[:_MOST_LABELS]))
        + (", ..." if len(model.class_names) > _MOST_LABELS else ""),
        figures=_figures(about.get("evaluations", []), checkpoint.get("weights", "params")),
        maker="trained with jaxcls" if is_trained_here else "converted by jaxcls",
        origin=(_trained if is_trained_here else _published)(about),
        digest=_quoted(about.get("digest", "unknown")),
        text=_quoted(about.get("preprocessing", {}).get("text", "unknown")),
        mean=list(told.mean),
        std=list(told.std),
        size=told.size,
        interpolation=told.interpolation,
        crop=told.crop,
        mode=told.crop_mode,
    )


def _trained(about: Mapping[str, Any]) -> str:
    """Returns lines about the data and the checkpoint of a run."""
    data, checkpoint = about.get("data", {}), about.get("checkpoint", {})
    splits = "; ".join(
        f"{role} {_quoted(data[role])}"
        for role in ("train", "eval", "test")
        if data.get(role)
    )
    return (
        f"- Dataset: {_quoted(data.get('name') or 'unknown')}; splits:"
        f" {splits or 'unknown'}\n"
        f"- Fingerprint: {_quoted(data.get('fingerprint') or 'unknown')}\n"
        f"- Checkpoint: {checkpoint.get('is', 'unknown')}, step"
        f" {checkpoint.get('step', 'unknown')}"
    )


def _published(about: Mapping[str, Any]) -> str:
    """Returns lines about weights that were not trained here."""
    checkpoint = about["checkpoint"]
    return (
        "- Dataset: unknown\n"
        f"- Weights: from {_quoted(checkpoint['init.weights'])}, fingerprint"
        f" {_quoted(checkpoint['fingerprint'])}"
    )


def _figures(evaluations: Sequence[Mapping[str, Any]], weights: str) -> str:
    """Returns the last evaluation as rows of a table, with 95 % intervals of shares.

    weights: "ema" if the figures of the average are those of the file.
    """
    if not evaluations:
        return "No evaluation is recorded.\n"
    last = evaluations[-1]
    n, rows = last.get("n", 0), ""
    prefix = AVERAGED if weights == "ema" else ""
    for key, value in last.items():
        is_of_file = key.startswith(AVERAGED) == bool(prefix)
        if not (isinstance(value, float) and is_of_file):
            continue
        name, span = key.removeprefix(prefix), ""
        if name in _HITS and n:
            found = intervals.proportion(round(value * n), n)
            span = f"{found.low:.4f} to {found.high:.4f}"
        rows += f"| {name} | {value:.4f} | {span} |\n"
    return (
        f"On {_quoted(str(last.get('split', 'unknown')))}, {n:,} examples:\n\n"
        f"| metric | value | 95 % interval |\n|---|---|---|\n{rows}\n"
        "Intervals are Wilson's, over the examples of the split; they do not cover another"
        " seed of training.\n"
    )


def _quoted(text: str) -> str:
    """Returns a text as code of Markdown, on one line."""
    line = " ".join(str(text).split()).replace("`", "'")
    return f"`{line}`"


_MOST_LABELS = 20
_CARD = """\
---
license: "{license}"
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- jaxcls
---

# {name}

An image classifier of {classes} classes, {maker}: timm's
`{architecture}`{arguments}, {parameters} numbers. Labels: {labels}.

## Results

{figures}
## Training data

{origin}; digest {digest}

## Preprocessing

{text} in jaxcls; in timm {size} pixels, {interpolation}, crop_pct {crop:.4f},
crop_mode {mode}, mean {mean}, std {std}.

## Use

FOLDER is this folder. Of the repository ORG/NAME on a hub, timm takes `hf-hub:ORG/NAME`,
transformers `ORG/NAME`, and jaxcls `hf:ORG/NAME`.

```python
import timm
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

```python
from transformers import pipeline
classify = pipeline("image-classification", model="FOLDER")
```

```python
import jaxcls
module, variables = jaxcls.models.create(
    {ours!r},
    num_classes={classes},
    image_shape={shape},
    weights="FOLDER",
)
```
"""
