"""distill.run -> the teacher, whose logits a run learns (arXiv:1503.02531).

The teacher sees the same images as the student, augmented and mixed, as in Beyer et al.,
arXiv:2106.05237.
"""

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.errors import InputError
from jaxcls.experiment import initial
from jaxcls.experiment.initial import TrainedModel
from jaxcls.experiment.recipe import Recipe

_KEY = "distill.run"


def load(student: Recipe) -> TrainedModel:
    """Returns the teacher of a recipe, at its best checkpoint.

    Raises `InputError` if distill.run is not a run's folder, or the teacher has other
    classes or inputs than the student.
    """
    place = student.config.distill.run
    if not initial.is_run(place):
        raise InputError(f"{_KEY}={place} is not a run's folder; give a --workdir of one")
    found = initial.read_run(place, _KEY, student.plugins)
    teacher = found.recipe
    there, here = teacher.data.selection, student.data.selection
    if there.class_names != here.class_names:
        raise InputError(
            f"{_KEY}={place} tells other classes apart ({there.num_classes} of"
            f" {teacher.config.data.name}), and here are {here.num_classes} of"
            f" {student.config.data.name}; train the teacher on these"
        )
    side, _, channels = teacher.data.train_shape
    pixels = jnp.arange(12 * channels, dtype=jnp.uint8).reshape(1, 2, 6, channels) * 7
    if channels != student.data.train_shape[2] or not np.array_equal(
        student.normalize(pixels), teacher.normalize(pixels)
    ):
        raise InputError(
            f"{_KEY}={place} was trained on {channels} channels and"
            f" normalize={teacher.config.normalize!r}, and here are"
            f" {student.data.train_shape[2]} and {student.config.normalize!r}; give its own"
        )
    for shape in student.data.train_shapes:
        image = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
        try:
            jax.eval_shape(teacher.logits_step(), teacher.variables_like, image)
        except (flax.errors.ScopeParamShapeError, InputError):
            raise InputError(
                f"{_KEY}={place} cannot take images of {shape[1]}x{shape[0]} pixels; end"
                f" data.train_ops in the size that it was trained on, {side}"
            ) from None
    return found
