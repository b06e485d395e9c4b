"""Write a trained run as a file for other programs: ``jaxcls export --workdir=RUN``.

An exported program takes uint8 images of the model's size, normalises them and returns
logits. The export loads the file as its users do, and compares its logits of real images
with the model's logits. If they agree, the folder appears with the file, model.json and
example.py. Otherwise nothing is left.
"""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import atomic, experiment
from jaxcls.data import clean, decode, files
from jaxcls.errors import InputError, first_line
from jaxcls.evaluation import examples
from jaxcls.export import facts as export_facts
from jaxcls.export import formats
from jaxcls.export.formats import example
from jaxcls.export.formats.model import Asked, Model, runs
from jaxcls.predict import inference
from jaxcls.runs import provenance
from jaxcls.version import __version__

# The most images that an export is checked on, and the largest difference of logits, as a
# fraction of the largest logit (of 1 if that is smaller).
MOST_IMAGES, TOLERANCE = 256, 1e-4
# The sizes of the first batches; all later batches have the last size.
BATCH_SIZES = (1, 7, 64)


class Images(NamedTuple):
    """Real images [n, H, W, C] uint8 after eval_ops, and their source as text."""

    pixels: np.ndarray
    source: str


class DiffersError(Exception):
    """The file does not reproduce the model's logits; the text says how."""


def model_of(exp: experiment.Experiment, saved: Mapping[str, Any]) -> Model:
    """Returns the model of a run, in float32.

    saved: {"params", "batch_stats", "ema"}. The model gets the variables of predictions,
    see `Recipe.variables`.
    """
    module = exp.recipe.module_in(jnp.float32)

    def apply(variables: Any, images: jax.Array) -> jax.Array:
        with exp.recipe.numerics():
            return module.apply(variables, exp.recipe.normalize(images), False).logits

    return Model(
        exp.config.model.name,
        apply,
        exp.recipe.merged(jax.device_get(exp.recipe.variables(dict(saved)))),
        exp.data.eval_shape,
        tuple(exp.selection.class_names),
        exp.recipe.namings,
        export_facts.preprocessing(exp),
        exp.programs.jit,
    )


def export(
    form: str, kind: Any, model: Model, asked: Asked, images: Images, folder: pathlib.Path
) -> dict[str, Any]:
    """Write a model's file into `folder` and check it; returns its entries of model.json.

    form, kind: the name of a format and the format, see `jaxcls.export.formats`.

    Raises `InputError` if the model cannot be converted, and `DiffersError` if the file
    gives other logits than the model.
    """
    path = folder / formats.file_of(form, kind)
    try:
        facts = kind.write(model, path, asked)
    except (InputError, OSError):
        raise
    except Exception as error:  # Converters raise any exception.
        raise InputError(
            f"--format={form} cannot be made of model.name={model.name}"
            f" ({type(error).__name__}: {first_line(error)}); try --format=stablehlo"
        ) from None
    pixels, size, ours = images.pixels, BATCH_SIZES[-1], runs(model, model.variables)
    n = len(pixels)
    here = np.concatenate([ours(part) for part in np.split(pixels, range(size, n, size))])
    first = np.cumsum(BATCH_SIZES).tolist()
    cuts = [end for end in (*first, *range(first[-1] + size, n, size)) if end < n]
    parts = np.split(pixels, cuts)
    try:
        run = kind.load(model, path, facts)
        there = np.concatenate([np.asarray(run(part)) for part in parts])
        apart = float(np.abs(here - there).max())
    except Exception as error:  # So do runtimes; and other shapes do not subtract.
        raise DiffersError(
            f"--format={form}: {path.name} does not run ({type(error).__name__}:"
            f" {first_line(error)})"
        ) from None
    most = TOLERANCE * max(1.0, float(np.abs(here).max()))
    if not apart <= most:  # `not`, so that NaN differs.
        raise DiffersError(
            f"--format={form}: {path.name} gives other logits than the model: {apart:.3g}"
            f" apart, of {n} images of {images.source}, and may be {most:.3g}"
        )
    verified = {
        "images": n,
        "source": images.source,
        "batch_sizes": sorted({len(part) for part in parts}),
        "largest_difference": apart,
        "tolerance": most,
    }
    return {**facts, "verified": verified}


def of_files(exp: experiment.Experiment, paths: Sequence[str]) -> Images:
    """Returns the first images of files and folders; raises `InputError` for a bad file."""
    found = []
    with clean.quiet():
        for each in itertools.islice(files.images(paths), MOST_IMAGES):
            path, why = each if isinstance(each, files.Bad) else (each, "")
            try:
                if why:
                    raise decode.DecodeError(why)
                found.append(inference.read(exp, path))
            except decode.DecodeError as error:
                raise InputError(f"--images={path}: {error}; give image files") from None
    # The folder may be for others, and a whole path is of this machine.
    name = pathlib.Path(paths[0]).expanduser().resolve().name
    return Images(np.stack(found), f"--images={name}")


def of_data(exp: experiment.Experiment) -> Images:
    """Returns the first images of data.test, else of data.eval, else of data.train.

    Raises `InputError` if the dataset is missing.
    """
    role = next(role for role in ("test", "eval", "train") if exp.config.data[role])
    given = examples.of_run(exp, role)
    try:
        found, n = [], 0
        for batch in exp.eval_batches(given.split, given.key, BATCH_SIZES[-1]):
            found.append(np.asarray(batch.image)[np.asarray(batch.mask)])
            n += len(found[-1])
            if n >= MOST_IMAGES:
                break
    except InputError as error:
        raise InputError(
            f"an export is checked on real images, and those of the run are not there"
            f" ({error}); give --images=FILE_OR_FOLDER or --config.data.dir=DIR"
        ) from None
    return Images(np.concatenate(found)[:MOST_IMAGES], f"{given.key}={given.split}")


def describe(
    form: str, kind: Any, model: Model, facts: Mapping[str, Any], folder: pathlib.Path
) -> None:
    """Write model.json, and example.py if the format has one and the host ops are ours."""
    steps, link = facts["preprocessing"]["steps"], facts["output"]["link"]
    are_ours = all(step["op"] in decode.HOST_OPS for step in steps)
    run = kind.example(model, facts) if are_ours else None
    if run:
        text = example.source(run, steps, model.image_shape, link)
        atomic.write(folder / "example.py", text)
    packages = ("jax", "jaxlib", "flax", "numpy", *kind.NEEDS.values())
    about = {
        "format": form,
        "file": formats.file_of(form, kind),
        "example": "example.py" if run else None,
        **facts,
        "versions": {"jaxcls": __version__, **provenance.versions(packages)},
    }
    atomic.write_json(folder / "model.json", about)


def export_run(
    form: str,
    kind: Any,
    exp: experiment.Experiment,
    model: Model,
    asked: Asked,
    about: Mapping[str, Any],
    paths: Sequence[str],
    out: pathlib.Path,
) -> dict[str, Any]:
    """Write the folder `out`, whole or not at all; returns facts for model.json.

    about: further facts of model.json. paths: images for the check; (): examples of the
    run's dataset. Raises `InputError` and `DiffersError` as `export` does.
    """
    with atomic.folder(out, "--out") as temporary, jax.default_device(_cpu()):
        images = of_files(exp, paths) if paths else of_data(exp)
        model = model._replace(about=about)
        facts = {**export(form, kind, model, asked, images, temporary), **about}
        describe(form, kind, model, facts, temporary)
    return facts


def _cpu() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise InputError(
            "an export is checked on CPU, which JAX_PLATFORMS leaves out; add it, as in"
            " JAX_PLATFORMS=cuda,cpu"
        ) from None
