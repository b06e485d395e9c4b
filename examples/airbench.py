"""A plug-in: the network and the optimizer of CIFAR-10's speed records.

The network is airbench's (Jordan, arXiv:2404.00498). Its first layer whitens patches of
2x2 pixels; its filters come from the training images, before the first step. The other
convolutions start as the identity. The defaults reach 94 % in 3.29 s on one A100; 96 %
needs widths=(128, 384, 512), convs=3 and momentum=0.9. The record since then has
activation='silu' and momentum=0.5566, `muon_sgd` and `renormalize`:

    jaxcls train --config=configs/cifar10_fast.py --config.data.dir=DIR
    jaxcls evaluate --workdir=runs/cifar10_fast --plugins=examples/airbench.py
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcls.config.calls import check_range
from jaxcls.errors import InputError
from jaxcls.learning.param_groups import map_named, searcher
from jaxcls.models import initializers, layers
from jaxcls.models.layers import BatchNorm, Dtype, Output, conv
from jaxcls.models.naming import Naming

Tree = Any

# PyTorch's default: uniform within +-1 / sqrt(fan-in).
UNIFORM = initializers.variance_scaling(1 / 3, "fan_in", "uniform")
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": layers.gelu,
    "silu": nn.silu,
}
# The height and width of the patches that the first layer whitens.
PATCH = 2


def whitening(images: np.ndarray, kernel: int = PATCH, epsilon: float = 5e-4) -> np.ndarray:
    """Returns filters [k, k, C, 2 k k C] float32 that decorrelate patches of k x k pixels.

    images: float32 [N, H, W, C], normalised as the network sees them; a few thousand
    suffice. The first half of the filters is the eigenvectors v of the mean of p p^T over
    all patches p, each divided by sqrt(its eigenvalue + epsilon), the largest eigenvalue
    first. The second half is the first, negated (arXiv:2404.00498). The sign of v makes its
    entry of largest magnitude positive.
    """
    size = kernel * kernel * images.shape[3]
    total, count = np.zeros((size, size)), 0
    for start in range(0, len(images), 256):  # All patches at once would need gigabytes.
        windows = np.lib.stride_tricks.sliding_window_view(
            images[start : start + 256], (kernel, kernel), axis=(1, 2)
        )
        flat = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size).astype(np.float64)
        total += flat.T @ flat
        count += len(flat)
    values, vectors = np.linalg.eigh(total / count)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(size)])
    half = vectors / np.sqrt(values + epsilon)
    both = np.concatenate([half, -half], axis=1, dtype=np.float32)
    return both.reshape(kernel, kernel, images.shape[3], 2 * size)


def dirac(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
    """Initialises kernels [H, W, I, O]: the first min(I, O) filters copy their channel.

    The others are `UNIFORM`.
    """
    height, width, inputs, outputs = shape
    same = np.arange(min(inputs, outputs))
    kernel = UNIFORM(key, shape, dtype).at[..., same].set(0)
    return kernel.at[height // 2, width // 2, same, same].set(1)


class Block(nn.Module):
    """A 3x3 convolution, a 2x2 maximum, and one or two more convolutions.

    Each convolution has a BatchNorm without a scale. With convs=3 the last two convolutions
    have a shortcut.
    """

    width: int
    convs: int
    momentum: float
    activation: str
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        activate = ACTIVATIONS[self.activation]
        filters = partial(conv, self.width, 3, dtype=self.dtype, kernel_init=dirac)
        norm = partial(BatchNorm, self.momentum, 1e-12, dtype=self.dtype, use_scale=False)
        x = layers.max_pool(filters(name="conv1")(x), window=2, stride=2)
        x = activate(norm(name="norm1")(x, train))
        y = norm(name="norm2")(filters(name="conv2")(x), train)
        if self.convs == 3:
            y = filters(name="conv3")(activate(y))
            y = x + norm(name="norm3")(y, train)
        return activate(y)


class Airbench(nn.Module):
    """Maps images [B, H, W, C] float32 to logits [B, K] and embed [B, D].

    By default H and W are at least 9. widths: filters of each block. convs: convolutions a
    block, 2 or 3. scale: a factor of the logits. momentum: the weight of the old running
    statistics. activation: of the blocks, gelu or silu. whitened: the first layer's filters
    come from images; else they start as the identity. The last pooling is the maximum over
    all positions, at any image size; at 32 pixels it is the paper's 3x3 maximum.
    """

    num_classes: int
    dtype: Dtype = jnp.float32
    widths: tuple[int, ...] = (64, 256, 256)
    convs: int = 2
    scale: float = 1 / 9
    momentum: float = 0.6
    activation: str = "gelu"
    whitened: bool = True

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths={self.widths} must be at least 1, such as (64, 256)")
        if self.convs not in (2, 3):
            raise ValueError(f"convs={self.convs} must be 2 or 3")
        if self.scale <= 0:
            raise ValueError(f"scale={self.scale} must be above 0, such as 0.1")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} must be 'gelu' or 'silu'")
        layers.check_shares(momentum=self.momentum)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        # The first layer removes a pixel, and each block halves the feature map.
        layers.check_size(images, 1 + 2 ** len(self.widths), "airbench")
        filters = 2 * PATCH * PATCH * images.shape[3]
        whiten = partial(conv, filters, PATCH, padding=[(0, 0)] * 2, bias=True)
        x = images.astype(self.dtype)
        x = whiten(dtype=self.dtype, kernel_init=dirac, name="whiten")(x)
        x = layers.gelu(x)
        for name, width in zip(self._blocks(), self.widths, strict=True):
            block = Block(
                width, self.convs, self.momentum, self.activation, self.dtype, name=name
            )
            x = block(x, train)
        output = layers.head(x.max(axis=(1, 2)), self.num_classes, UNIFORM, bias=False)
        return output._replace(logits=output.logits * self.scale)

    def _blocks(self) -> list[str]:
        """Returns the names of the blocks."""
        return [f"block{i}" for i in range(1, len(self.widths) + 1)]

    def from_images(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the params that come from training images, normalised, by path."""
        return {"whiten/kernel": whitening(images)} if self.whitened else {}

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the layers by depth, input first, for layer-wise decay of the rate."""
        return [("whiten",), *((name,) for name in self._blocks()), ("head",)]

    def namings(self) -> dict[str, Naming]:
        """Returns our names with PyTorch's axes; no other library has this model."""
        table: Naming = {"whiten": "whiten", "head": "head"}
        for name in self._blocks():
            for n in range(1, self.convs + 1):
                table[f"{name}/conv{n}"] = f"{name}.conv{n}"
                table[f"{name}/norm{n}"] = f"{name}.norm{n}"
        return {"pytorch": table}


def muon_sgd(
    decay: optax.GradientTransformation,
    momentum: float = 0.6,
    nesterov: bool = True,
    iterations: int = 3,
    coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
    sgd_on: str = "^head/",
    sgd_momentum: float = 0.85,
) -> optax.GradientTransformation:
    """Returns Muon for kernels and Nesterov SGD for all else, with decoupled decay.

    It is the form of the speed records on CIFAR-10 (Jordan, airbench94_muon): SGD's
    momentum of a kernel, orthogonalised and not scaled. Kernels of one shape are
    orthogonalised as one batch.

    coefficients: a, b, c of an iteration: X becomes a X + b S X + c S S X, where S is
        X X^T.
    iterations: The number of Newton-Schulz iterations.
    sgd_on: A regular expression on paths; SGD also trains a matching kernel. "" matches
        nothing.
    """
    check_range("[0, 1)", 0.9, momentum=momentum, sgd_momentum=sgd_momentum)
    check_range("[1, inf)", 3, iterations=iterations)
    search = searcher("sgd_on", sgd_on, "^head/")

    def label(path: str, param: Any) -> str:
        by_sgd = param.ndim not in (2, 4) or (sgd_on and search(path))
        return "sgd" if by_sgd else "muon"

    orthogonal = optax.stateless(
        lambda updates, params: orthogonalized(updates, iterations, coefficients)
    )
    step = optax.partition(
        {
            "muon": optax.chain(optax.trace(momentum, nesterov), orthogonal),
            "sgd": optax.trace(sgd_momentum, nesterov=True),
        },
        partial(map_named, label),
    )
    return optax.chain(step, decay, optax.scale(-1.0))


def orthogonalized(
    kernels: Tree, iterations: int, coefficients: tuple[float, float, float]
) -> Tree:
    """Maps kernels [..., out] to nearly orthogonal ones by Newton-Schulz iterations.

    A kernel counts as a matrix [the product of its other axes, out].
    """
    a, b, c = coefficients
    leaves, structure = jax.tree.flatten(kernels)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, leaf in enumerate(leaves):
        by_shape.setdefault(leaf.shape, []).append(i)
    for shape, members in by_shape.items():
        x = jnp.stack([leaves[i].reshape(-1, shape[-1]) for i in members])
        is_tall = x.shape[1] > x.shape[2]
        x = x.mT if is_tall else x
        x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-7)
        for _ in range(iterations):
            squared = x @ x.mT
            x = a * x + (b * squared + c * squared @ squared) @ x
        x = x.mT if is_tall else x
        for i, matrix in zip(members, x, strict=True):
            leaves[i] = matrix.reshape(shape)
    return jax.tree.unflatten(structure, leaves)


class RenormalizeState(NamedTuple):
    """inner: the optimizer's state; steps: updates done; last: the latest that scaled."""

    inner: Tree
    steps: jax.Array
    last: jax.Array


def renormalize(
    optimizer: optax.GradientTransformation,
    on: str = "conv.*kernel$",
    every: int = 1,
    growth: int = 0,
    freeze: str = "",
    freeze_from: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Returns `optimizer` with kernels that are scaled to the norm sqrt(their outputs).

    It can also freeze params after a part of the run, as the record does with the bias of
    the layer that whitens.

    BatchNorm cancels the scale of the convolution before it, so the norm only decides how
    much an update of a given size changes (Jordan, airbench94_muon). A scaling comes before
    the update of its step.

    on: A regular expression on paths.
    every: Updates from one scaling to the next, at the start of the run.
    growth: Their number grows by this much, linearly, up to the end of the run. ``share``,
        an argument of `update`, is the share of the run done with this update.
    freeze: A regular expression on the paths of params that freeze; "" freezes none.
    freeze_from: The largest share at which they still train.

    Raises ValueError for an option out of range; init raises `InputError` if no param
    matches `on`.
    """
    check_range("[1, inf)", 2, every=every)
    check_range("[0, inf)", 15, growth=growth)
    check_range("(0, 1]", 0.1, freeze_from=freeze_from)
    matches = searcher("on", on, "conv.*kernel$")
    freezes = searcher("freeze", freeze, "^whiten/") if freeze else lambda path: None
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Tree) -> RenormalizeState:
        if not any(jax.tree.leaves(map_named(lambda path, _: bool(matches(path)), params))):
            raise InputError(
                f"optim.wrapper: renormalize: on={on!r} matches no param; give an"
                " expression on paths, such as on='kernel$'"
            )
        zero = jnp.zeros((), jnp.int32)
        return RenormalizeState(inner.init(params), zero, jnp.copy(zero))

    def update(
        grads: Tree,
        state: RenormalizeState,
        params: Tree,
        *,
        share: jax.Array,
        **extra: Any,
    ) -> tuple[Tree, RenormalizeState]:
        updates, new = inner.update(grads, state.inner, params, share=share, **extra)
        steps = state.steps + 1
        due = steps - state.last >= every + jnp.int32(growth * share)

        def scaled(path: str, p: jax.Array) -> jax.Array:
            norm = jnp.linalg.norm(p.ravel())
            factor = p.shape[-1] ** 0.5 / jnp.where(norm > 0, norm, jnp.inf)
            return (factor - 1.0) * p if matches(path) else jnp.zeros_like(p)

        changes = map_named(scaled, params)
        updates = jax.tree.map(lambda u, c: jnp.where(due, u + c, u), updates, changes)
        updates = map_named(
            lambda path, u: jnp.where(share <= freeze_from, u, 0.0) if freezes(path) else u,
            updates,
        )
        return updates, RenormalizeState(new, steps, jnp.where(due, steps, state.last))

    return optax.GradientTransformationExtraArgs(init, update)


MODELS = {"airbench": Airbench}
OPTIMIZERS = {"muon_sgd": muon_sgd}
WRAPPERS = {"renormalize": renormalize}
