"""Saliency maps of a model: Grad-CAM, and attention rollout.

Models need no support for this: `flax.linen.intercept_methods` reads and changes the
outputs of their modules during tracing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.errors import InputError
from jaxcls.models import vit
from jaxcls.models.attention import of_heads

# Normalised images [B, H, W, C] -> logits [B, K]: a Flax model with its variables.
Apply = Callable[[jax.Array], jax.Array]


class Features(NamedTuple):
    """The last feature map [B, h, w, C] of a model, and a logit's gradient by it."""

    values: jax.Array
    gradient: jax.Array


class Attention(NamedTuple):
    """Attention weights [L, B, heads, N, N] of L layers, and the patch grid (h, w).

    A row of weights belongs to a query. The last h * w of the N tokens are the patches,
    row by row. by_token: whether the output is the first token, not the patches' mean.
    pooled [B, heads, 1, h * w]: the weights of the patches in an attention pool, if the
    model has one.
    """

    weights: jax.Array
    grid: tuple[int, int]
    by_token: bool
    pooled: jax.Array | None = None


def grad_cam(features: Features) -> jax.Array:
    """Returns the Grad-CAM map [B, h, w] float32, at least 0, of the gradient's class.

    It is the sum of the channels, each weighted by its mean gradient. Evidence against
    the class becomes 0 (Selvaraju et al., arXiv:1610.02391).
    """
    values, gradient = (x.astype(jnp.float32) for x in features)
    weights = gradient.mean(axis=(1, 2))
    return nn.relu(jnp.einsum("bhwc,bc->bhw", values, weights))


def rollout(attention: Attention) -> jax.Array:
    """Returns the attention rollout [B, h, w] float32: each patch's share of the output.

    A layer is half its shortcut and half the mean over its heads; the shares of an image
    sum to at most 1 (Abnar and Zuidema, arXiv:2005.00928). The output is the class token,
    the mean over the patches, or by the weights of an attention pool.
    """
    weights, (height, width), by_token, pooled = attention
    size = weights.shape[-1]
    mixed = (weights.astype(jnp.float32).mean(axis=2) + jnp.eye(size)[None, None]) / 2
    joint = mixed[0]
    for layer in mixed[1:]:
        joint = layer @ joint
    patches = height * width
    seen = joint[:, 0] if by_token else joint[:, size - patches :].mean(axis=1)
    if pooled is not None:
        shares = pooled.astype(jnp.float32).mean(axis=1)
        seen = (shares @ joint[:, size - patches :])[:, 0]
    return seen[:, size - patches :].reshape(-1, height, width)


def last_map(apply: Apply, images: jax.Array, classes: jax.Array) -> Features:
    """Returns the last feature map for images [B, H, W, C], with the classes' gradient.

    classes [B]: their logits give the gradient. The map is the last module output of shape
    [B, h, w, C], or the last tokens [B, h * w, C] of such a map. Raises `InputError` for a
    model without a feature map.
    """
    shapes: list[tuple[int, ...]] = []

    def note(module: nn.Module, out: jax.Array) -> jax.Array:
        shapes.append(out.shape)
        return out

    jax.eval_shape(_tapped(apply, note), images)
    which, shape = _last(shapes)

    def logit(change: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (sum of the classes' logits, map), with `change` added to the map."""
        seen: list[jax.Array] = []

        def perturb(module: nn.Module, out: jax.Array) -> jax.Array:
            seen.append(out)
            if len(seen) - 1 != which:
                return out
            # `seen` has the map without `change`, which is zero.
            return out + change.reshape(out.shape).astype(out.dtype)

        logits = _tapped(apply, perturb)(images)
        of_class = jnp.take_along_axis(logits, classes[:, None], axis=-1)
        return of_class.sum(), seen[which].reshape(shape)

    gradient, values = jax.grad(logit, has_aux=True)(jnp.zeros(shape, jnp.float32))
    return Features(values, gradient)


def attention(apply: Apply, images: jax.Array) -> Attention | None:
    """Returns the attention of a model for images [B, H, W, C]; None without attention."""
    weights: list[jax.Array] = []
    grids: list[tuple[int, int]] = []
    pools: list[str] = []
    latent: list[jax.Array] = []
    pooled: list[jax.Array] = []

    def listen(module: nn.Module, out: jax.Array) -> jax.Array:
        if isinstance(module.parent, vit.Attention) and module.name == "qkv":
            attend = module.parent
            wide = out.astype(jnp.float32)
            query, key, _ = of_heads(wide, attend.heads, grid=attend.grid)
            weights.append(_shares(query, key))
        elif isinstance(module.parent, vit.AttentionPool) and module.name == "query":
            latent[:] = of_heads(out.astype(jnp.float32), module.parent.heads, parts=1)
        elif isinstance(module.parent, vit.AttentionPool) and module.name == "kv":
            key, _ = of_heads(out.astype(jnp.float32), module.parent.heads, parts=2)
            query = jnp.broadcast_to(latent[0], (len(key), *latent[0].shape[1:]))
            pooled.append(_shares(query, key))
        elif out.ndim == 4:
            grids.append((out.shape[1], out.shape[2]))
            pools.append(getattr(module.parent, "pool", "token"))
        return out

    _tapped(apply, listen)(images)
    if not weights:
        return None
    by_token = pools[-1] == "token"
    return Attention(jnp.stack(weights), grids[-1], by_token, *pooled)


def _shares(query: jax.Array, key: jax.Array) -> jax.Array:
    """Returns attention weights [B, heads, Q, N], of query and key [B, ., heads, D]."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
    return jax.nn.softmax(scores / query.shape[-1] ** 0.5, axis=-1)


def _tapped(apply: Apply, heard: Callable[[nn.Module, jax.Array], jax.Array]) -> Apply:
    """Returns `apply` with `heard(module, output)` in place of each module's output.

    It hears the `__call__` of every module that returns one array.
    """

    def interceptor(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        out = call(*args, **kwargs)
        is_layer = context.method_name == "__call__" and isinstance(out, jax.Array)
        return heard(context.module, out) if is_layer else out

    def run(images: jax.Array) -> jax.Array:
        with nn.intercept_methods(interceptor):
            return apply(images)

    return run


def _last(shapes: list[tuple[int, ...]]) -> tuple[int, tuple[int, ...]]:
    """Returns (index of the last feature map in `shapes`, its shape [B, h, w, C]).

    Raises `InputError` if there is no feature map.
    """
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
