"""What tests of models share: modules from a config's text, and their shapes."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.config import calls
from jaxcls.models import MODELS, naming

KEY = jax.random.key(0)


def built(text, table=MODELS, **options):
    """The module that ``model.name`` of a config describes."""
    options = {"num_classes": 1000, "dtype": jnp.float32} | options
    return calls.build_one(text, table, "model.name", **options)


def shapes(module, size, channels=3):
    """(output, variables) as shapes, for two images, computing nothing."""
    image = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    return jax.eval_shape(lambda x: module.init_with_output(KEY, x, False), image)


def outputs(text, size, table=MODELS):
    """{module: shape of what it gives}, computing nothing."""

    def forward(x):
        options = {"capture_intermediates": True, "mutable": ["intermediates"]}
        module = built(text, table)
        return module.apply(module.init(KEY, x, False), x, False, **options)[1]

    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    seen = jax.eval_shape(forward, image)["intermediates"]
    leaves = jax.tree_util.tree_leaves_with_path(seen)
    return {"/".join(p.key for p in path[:-2]): leaf.shape[1:] for path, leaf in leaves}


def count(tree):
    """How many numbers the arrays of a tree hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def dtypes(tree):
    """The names of the dtypes of a tree."""
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


def zeros_of(name, library="torchvision"):
    """{name there: array of zeros}: all that a library's file of a model would hold."""
    module = built(name)
    made = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes(module, 224)[1])
    return naming.to_theirs(made, module.namings()[library])
