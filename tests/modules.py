"""What tests of models share: modules from a config's text, and their shapes."""

import jax
import jax.numpy as jnp

from jaxcls import pipeline
from jaxcls.models import MODELS

KEY = jax.random.key(0)


def built(text, **options):
    """The module that ``model.name`` of a config describes."""
    options = {"num_classes": 1000, "dtype": jnp.float32} | options
    return pipeline.build_one(text, MODELS, "model.name", **options)


def shapes(module, size, channels=3):
    """(output, variables) as shapes, for two images, computing nothing."""
    image = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    return jax.eval_shape(lambda x: module.init_with_output(KEY, x, False), image)


def count(tree):
    """How many numbers the arrays of a tree hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def dtypes(tree):
    """The names of the dtypes of a tree."""
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}
