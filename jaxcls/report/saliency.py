"""Where in an image a model looked: Grad-CAM, and attention rollout.

Models say nothing of it themselves: what their modules give while they are traced is
taken, and added to, from outside (`flax.linen.intercept_methods`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.errors import InputError
from jaxcls.models import vit

# Normalised images [B, H, W, C] -> logits [B, K]: a Flax model with its variables.
Apply = Callable[[jax.Array], jax.Array]
Heard = Callable[[nn.Module, Any], Any]


class Features(NamedTuple):
    """The last map [B, h, w, C] that a model makes, and a logit's gradient by it."""

    values: jax.Array
    gradient: jax.Array


class Attention(NamedTuple):
    """weights [L, B, heads, N, N] of the layers, rows: who looks; (h, w) of the patches.

    Of the N tokens the last h * w are the patches, row by row.
    """

    weights: jax.Array
    grid: tuple[int, int]


def grad_cam(features: Features) -> jax.Array:
    """Evidence [B, h, w] float32, at least 0, for the class whose gradient is given.

    Each channel of the map counts by the mean of its gradient; what speaks against the
    class is 0 (Selvaraju et al., arXiv:1610.02391).
    """
    values, gradient = (x.astype(jnp.float32) for x in features)
    weights = gradient.mean(axis=(1, 2))
    return nn.relu(jnp.einsum("bhwc,bc->bhw", values, weights))


def rollout(attention: Attention) -> jax.Array:
    """What of each patch reaches the output through all layers: [B, h, w] float32.

    Half of a layer is its shortcut, half the mean over its heads; shares of one image
    sum to at most 1 (Abnar and Zuidema, arXiv:2005.00928). Of a class token, where there
    is one, and else the mean over the patches.
    """
    weights, (height, width) = attention
    size = weights.shape[-1]
    mixed = (weights.astype(jnp.float32).mean(axis=2) + jnp.eye(size)[None, None]) / 2
    joint = mixed[0]
    for layer in mixed[1:]:
        joint = layer @ joint
    patches = height * width
    seen = joint[:, 0] if size > patches else joint.mean(axis=1)
    return seen[:, size - patches :].reshape(-1, height, width)


def last_map(apply: Apply, images: jax.Array, classes: jax.Array) -> Features:
    """The last map of a model for images [B, H, W, C], and the gradient of classes [B].

    The map is the last that a module gives as [B, h, w, C], or as tokens [B, h * w, C] of
    such a map. Raises `InputError` for a model without.
    """
    shapes: list[tuple[int, ...]] = []

    def count(module: nn.Module, out: Any) -> Any:
        shapes.append(jnp.shape(out))
        return out

    _trace(apply, images, count)
    which, shape = _last(shapes)

    def logit(change: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The sum of the classes' logits, and the map to which `change` is added."""
        seen: list[jax.Array] = []

        def perturb(module: nn.Module, out: Any) -> Any:
            seen.append(out)
            if len(seen) - 1 != which:
                return out
            # The map itself is kept; its neighbours are of no interest.
            return out + change.reshape(out.shape).astype(out.dtype)

        with nn.intercept_methods(_tap(perturb)):
            logits = apply(images)
        own = jnp.take_along_axis(logits, classes[:, None], axis=-1)
        return own.sum(), seen[which].reshape(shape)

    gradient, values = jax.grad(logit, has_aux=True)(jnp.zeros(shape, jnp.float32))
    return Features(values, gradient)


def attention(apply: Apply, images: jax.Array) -> Attention | None:
    """The attention of a model for images [B, H, W, C]; None where it has none."""
    weights: list[jax.Array] = []
    grids: list[tuple[int, int]] = []

    def listen(module: nn.Module, out: Any) -> Any:
        if isinstance(module.parent, vit.Attention) and module.name == "qkv":
            query, key, _ = vit.of_heads(out.astype(jnp.float32), module.parent.heads)
            scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
            weights.append(jax.nn.softmax(scores / query.shape[-1] ** 0.5, axis=-1))
        elif jnp.ndim(out) == 4:
            grids.append(out.shape[1:3])
        return out

    with nn.intercept_methods(_tap(listen)):
        apply(images)
    return Attention(jnp.stack(weights), grids[-1]) if weights else None


def _trace(apply: Apply, images: jax.Array, heard: Heard) -> None:
    """Call `apply` for shapes alone, with `heard` at the end of every module."""

    def run(images: jax.Array) -> jax.Array:
        with nn.intercept_methods(_tap(heard)):
            return apply(images)

    jax.eval_shape(run, images)


def _tap(heard: Heard) -> Callable[..., Any]:
    """An interceptor that gives what `heard` makes of each array that a module gives."""

    def interceptor(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        out = call(*args, **kwargs)
        is_layer = context.method_name == "__call__" and isinstance(out, jax.Array)
        return heard(context.module, out) if is_layer else out

    return interceptor


def _last(shapes: list[tuple[int, ...]]) -> tuple[int, tuple[int, ...]]:
    """(the place of the last map among what modules gave, its shape [B, h, w, C])."""
    found: tuple[int, tuple[int, ...]] | None = None
    grid = (0, 0)
    for place, shape in enumerate(shapes):
        if len(shape) == 4 and min(shape[1:3]) > 0:
            grid = shape[1], shape[2]
            found = place, shape
        elif len(shape) == 3 and shape[1] == grid[0] * grid[1]:
            found = place, (shape[0], *grid, shape[2])
    if found is None:
        raise InputError("the model has no feature map that could be shown")
    return found
