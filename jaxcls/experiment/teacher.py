"""distill.run -> the teacher, whose logits a run learns (arXiv:1503.02531).

The teacher sees the same images as the student, augmented and mixed, as in Beyer et al.,
arXiv:2106.05237.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.errors import InputError
from jaxcls.experiment import initial
from jaxcls.experiment.recipe import Recipe

_KEY = "distill.run"


class Teacher(NamedTuple):
    """A trained model: its variables, and (variables, images) -> logits [B, K].

    fingerprint: The fingerprint of the variables.
    """

    variables: dict[str, Any]
    logits: Callable[[dict[str, Any], jax.Array], jax.Array]
    fingerprint: str


def load(student: Recipe) -> Teacher:
    """Returns the teacher of a recipe, at its best checkpoint.

    Raises `InputError` if distill.run is not a run's folder, or the teacher has other
    classes or inputs than the student.
    """
    place = student.config.distill.run
    if not initial.is_run(place):
        raise InputError(f"{_KEY}={place} is not a run's folder; give a --workdir of one")
    found = initial.read_run(place, _KEY)
    recipe = found.recipe
    there, here = recipe.data.selection, student.data.selection
    if there.class_names != here.class_names:
        raise InputError(
            f"{_KEY}={place} tells other classes apart ({there.num_classes} of"
            f" {recipe.config.data.name}), and here are {here.num_classes} of"
            f" {student.config.data.name}; train the teacher on these"
        )
    _check_inputs(student, recipe)

    def logits(variables: dict[str, Any], images: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(recipe.model.apply(variables, images, False, None)[0])

    return Teacher(found.variables, logits, found.fingerprint)


def _check_inputs(student: Recipe, teacher: Recipe) -> None:
    """Raises `InputError` if the inputs of teacher and student differ in value or size."""
    mine, theirs = student.config.normalize, teacher.config.normalize
    channels = student.data.train_shape[2]
    pixels = np.arange(2 * 2 * channels, dtype=np.uint8).reshape(1, 2, 2, channels) * 17
    there = teacher.data.train_shape[2]
    if channels != there or not np.array_equal(
        student.normalize(jnp.asarray(pixels)), teacher.normalize(jnp.asarray(pixels))
    ):
        raise InputError(
            f"{_KEY}={student.config.distill.run} was trained on {there} channels and"
            f" normalize={theirs!r}, and here are {channels} and {mine!r}; give its own"
        )
    for shape in student.data.train_shapes:
        image = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
        try:
            jax.eval_shape(teacher.logits_step(), teacher.variables_like, image)
        except (flax.errors.ScopeParamShapeError, InputError):
            raise InputError(
                f"{_KEY}={student.config.distill.run} cannot take images of"
                f" {shape[1]}x{shape[0]} pixels; end data.train_ops in the size that it was"
                f" trained on, {teacher.data.train_shape[1]}"
            ) from None
