"""Layers that several families share."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.errors import InputError

Dtype = Any
# As He et al. (arXiv:1502.01852) start convolutions, fan out.
HE = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
LECUN = nn.initializers.lecun_normal()


class Output(NamedTuple):
    """What every model gives for B images: logits [B, K], and what its head saw.

    embed [B, D]: the features before the head. Both float32.
    """

    logits: jax.Array
    embed: jax.Array


def head(
    x: jax.Array,
    num_classes: int,
    kernel_init: nn.initializers.Initializer = LECUN,
) -> Output:
    """Features [B, D] -> `Output`, by one dense layer in float32 called "head".

    Called within a model: that name is what fine-tuning replaces.
    """
    x = x.astype(jnp.float32)
    return Output(nn.Dense(num_classes, kernel_init=kernel_init, name="head")(x), x)


def drop_path(x: jax.Array, rate: float, train: bool) -> jax.Array:
    """Stochastic depth (Huang et al., arXiv:1603.09382): a branch x [B, ...], or 0.

    Each example is dropped with probability `rate`; the others grow by 1 / (1 - rate).
    """
    each = tuple(range(1, x.ndim))
    return nn.Dropout(rate, broadcast_dims=each, deterministic=not train)(x)


def drop_rates(last: float, depth: int) -> list[float]:
    """The rates of `depth` blocks for `drop_path`: from 0, linearly, to `last`."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]


def block_names(stages: Sequence[int]) -> list[tuple[str, int, int]]:
    """(name, stage, number within it), from 0, of every block of stages of so many."""
    return [
        (f"stage{stage + 1}_block{i + 1}", stage, i)
        for stage, blocks in enumerate(stages)
        for i in range(blocks)
    ]


def check_shares(**shares: float) -> None:
    """Raise ValueError for a dropout rate that is not at least 0 and below 1."""
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name}={share} must be at least 0 and below 1, such as 0.1")


class BatchNorm(nn.Module):
    """Batch normalisation over the global batch (Ioffe and Szegedy, arXiv:1502.03167).

    images [B, ..., C] -> the same, in `dtype`; statistics are float32.
    momentum: of the running statistics, new = momentum * old + (1 - momentum) * batch.
    unbiased: keep N/(N-1) times the batch variance, as PyTorch does and Flax does not;
    what training normalises by is the biased one in both.
    Where the variables have a collection "frozen" with this layer's statistics, training
    keeps them and normalises by them: see `jaxcls.parts`.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = True
    dtype: Dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        shape = (x.shape[-1],)
        mean_var = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        if train and not self.has_variable("frozen", "mean"):
            axes = tuple(range(x.ndim - 1))
            wide = x.astype(jnp.float32)
            mean = wide.mean(axes)
            # One pass over memory instead of two; never below 0 by rounding.
            var = jnp.maximum(jnp.square(wide).mean(axes) - jnp.square(mean), 0.0)
            if not self.is_initializing():
                n = x.size // x.shape[-1]
                kept = var * (n / max(n - 1, 1)) if self.unbiased else var
                m = self.momentum
                mean_var.value = m * mean_var.value + (1.0 - m) * mean
                var_var.value = m * var_var.value + (1.0 - m) * kept
        else:
            mean, var = mean_var.value, var_var.value
        mean, factor, shift = (
            each.reshape((1,) * (x.ndim - 1) + shape)
            for each in (mean, scale * jax.lax.rsqrt(var + self.epsilon), bias)
        )
        # The mean first: folded into the shift it would cost digits where it is large.
        return ((x - mean) * factor + shift).astype(self.dtype)


def max_pool(x: jax.Array, *, window: int, stride: int, padding: int = 0) -> jax.Array:
    """x [B, H, W, C] -> its maxima over square windows.

    Explicit padding is -inf and then VALID: converters to ONNX get the padded form of
    `reduce_window` silently wrong.
    """
    if padding:
        sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        x = jnp.pad(x, sides, constant_values=-jnp.inf)
    return nn.max_pool(x, (window, window), strides=(stride, stride), padding="VALID")


def check_size(images: jax.Array, least: int, model: str) -> None:
    """Raise `InputError` for images [B, H, W, C] that are smaller than a model can take."""
    height, width = images.shape[1:3]
    if min(height, width) < least:
        raise InputError(
            f"{model} needs images of at least {least} pixels, and gets"
            f" {width}x{height}; end data.train_ops and data.eval_ops in a larger size,"
            " such as resize(224)"
        )


def adaptive_mean(x: jax.Array, size: int) -> jax.Array:
    """x [B, H, W, C] -> [B, size, size, C], means over windows that cover all of it.

    Window i of H positions is from floor(i H / size) to ceil((i + 1) H / size), as
    PyTorch's adaptive pooling has it; neighbours may share positions.
    """

    def windows(n: int) -> np.ndarray:
        rows = np.zeros((size, n), np.float32)
        for i in range(size):
            start, stop = i * n // size, -(-(i + 1) * n // size)
            rows[i, start:stop] = 1 / (stop - start)
        return rows

    height, width = x.shape[1:3]
    if (height, width) == (size, size):
        return x
    over = windows(height).astype(x.dtype), windows(width).astype(x.dtype)
    return jnp.einsum("ih,jw,bhwc->bijc", *over, x)


def global_mean(x: jax.Array) -> jax.Array:
    """x [B, H, W, C] -> [B, C] float32, the mean over the positions."""
    return x.astype(jnp.float32).mean(axis=(1, 2))


def conv(
    features: int,
    kernel: int,
    stride: int = 1,
    *,
    dtype: Dtype,
    bias: bool = False,
    name: str | None = None,
    padding: Sequence[tuple[int, int]] | None = None,
    groups: int = 1,
    kernel_init: nn.initializers.Initializer = HE,
) -> nn.Conv:
    """A square convolution, padded by kernel // 2 on every side as PyTorch pads."""
    side = (kernel // 2, kernel // 2)
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=(side, side) if padding is None else padding,
        use_bias=bias,
        dtype=dtype,
        feature_group_count=groups,
        kernel_init=kernel_init,
        name=name,
    )
