"""Layers that several families share."""

import contextlib
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.errors import InputError
from jaxcls.models import initializers
from jaxcls.models.convolution import convolve

Dtype = Any
# As He et al. (arXiv:1502.01852) start convolutions, fan out.
HE = initializers.variance_scaling(2.0, "fan_out", "normal")
LECUN = initializers.lecun_normal()


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
    bias: bool = True,
) -> Output:
    """Features [B, D] -> `Output`, by one dense layer in float32 called "head".

    Called within a model: that name is what fine-tuning replaces.
    """
    x = x.astype(jnp.float32)
    dense = nn.Dense(num_classes, use_bias=bias, kernel_init=kernel_init, name="head")
    return Output(dense(x), x)


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
    what training normalises by is the biased one in both. use_scale: whether a scale is
    learned, beside the bias.
    Where the variables have a collection "frozen" with this layer's statistics, training
    keeps them and normalises by them: see `jaxcls.learning.param_groups`.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = True
    dtype: Dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    use_scale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, groups: int = 1) -> jax.Array:
        """groups: row r is of group r % groups; each is normalised by its own statistics.

        The running ones then move once, by the means over groups of means and variances.
        Raises ValueError for groups that do not divide the batch that they are of.
        """
        shape = (x.shape[-1],)
        mean_var = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        given = x.shape
        if train and not self.has_variable("frozen", "mean"):
            x = _grouped(x, groups)
            axes = tuple(i for i in range(x.ndim - 1) if groups == 1 or i != 1)
            wide = x.astype(jnp.float32)
            mean = wide.mean(axes)
            # One pass over memory instead of two; never below 0 by rounding.
            var = jnp.maximum(jnp.square(wide).mean(axes) - jnp.square(mean), 0.0)
            if not self.is_initializing():
                n = x.size // mean.size
                kept = var * (n / max(n - 1, 1)) if self.unbiased else var
                m = self.momentum
                mean_var.value = m * mean_var.value + (1.0 - m) * _ungrouped(mean)
                var_var.value = m * var_var.value + (1.0 - m) * _ungrouped(kept)
        else:
            mean, var = mean_var.value, var_var.value
        factor = jax.lax.rsqrt(var + self.epsilon)
        if self.use_scale:
            scale = self.param("scale", self.scale_init, shape, jnp.float32)
            factor = scale.reshape((1,) * (var.ndim - 1) + shape) * factor
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean, factor, shift = (_against(each, x.ndim) for each in (mean, factor, bias))
        # The mean first: folded into the shift it would cost digits where it is large.
        return ((x - mean) * factor + shift).astype(self.dtype).reshape(given)


def _grouped(x: jax.Array, groups: int) -> jax.Array:
    """x [B, ..., C] -> [B / groups, groups, ..., C]; of one group, as it is."""
    if groups < 1 or x.shape[0] % groups:
        raise ValueError(f"groups={groups} must divide the batch, of {x.shape[0]} rows")
    # Every groups-th row, not a run of them: so rows stay on the devices that they are on.
    return x if groups == 1 else x.reshape(-1, groups, *x.shape[1:])


def _ungrouped(statistics: jax.Array) -> jax.Array:
    """[C] as it is, or [groups, C] -> [C], the mean over the groups."""
    return statistics.mean(0) if statistics.ndim == 2 else statistics


def _against(each: jax.Array, ndim: int) -> jax.Array:
    """[C] or [groups, C], in the shape in which it meets an array of `_grouped`."""
    *groups, features = each.shape
    positions = (1,) * (ndim - 2 - len(groups))
    return each.reshape(1, *groups, *positions, features)


@contextlib.contextmanager
def batch_norm_groups(groups: int) -> Iterator[None]:
    """While a model is traced within, each `BatchNorm` of it sees the batch in groups.

    Row r of a batch of training is in group r % groups. A function that was jitted outside
    keeps what it was traced with.
    """

    def passing(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        is_norm = isinstance(context.module, BatchNorm)
        if is_norm and context.method_name == "__call__":
            kwargs = {**kwargs, "groups": groups}
        return call(*args, **kwargs)

    with nn.intercept_methods(passing):
        yield


def blocks_of(groups: Sequence[Sequence[str]]) -> set[str]:
    """The names of a model's blocks among those of its layers, as `groups()` gives them."""
    names = {name for group in groups for name in group}
    return {name for name in names if re.fullmatch(r"(stage\d+_)?block\d+", name)}


@contextlib.contextmanager
def rematerialised(
    blocks: Collection[str], whole: Callable[[Any], Any] | None = None
) -> Iterator[None]:
    """While a model is traced within, each of its `blocks` keeps only what it is given.

    A gradient computes the rest of a block once more (Chen et al., arXiv:1604.06174), from
    the same keys. Parameters keep their names. whole: what a block's parameters go through
    first, which is done once more too.
    """
    # Flax calls a lifted method through its interceptors once more.
    within: list[str] = []

    def passing(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        module, is_call = context.module, context.method_name == "__call__"
        if within or not is_call or module.name not in blocks:
            return call(*args, **kwargs)
        within.append(str(module.name))
        try:
            raw = inspect.unwrap(type(module).__call__)
            if whole:
                raw = nn.map_variables(raw, "params", whole)
            # Of (module, x, train) the last decides what is traced.
            return nn.remat(raw, static_argnums=(2,))(module, *args, **kwargs)
        finally:
            within.clear()

    with nn.intercept_methods(passing):
        yield


class FeatureMap(nn.Module):
    """x [B, H, W, C] as it is: a place where what a model sees can be looked at.

    For maps that end in a function, such as a ReLU, and not in a module: see
    `jaxcls.report.saliency`.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def max_pool(x: jax.Array, *, window: int, stride: int, padding: int = 0) -> jax.Array:
    """x [B, H, W, C] -> its maxima over square windows.

    Explicit padding is -inf and then VALID: converters to ONNX get the padded form of
    `reduce_window` silently wrong. Keywords only: theirs of `nn.max_pool` takes no others.
    """
    if padding:
        sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        x = jnp.pad(x, sides, constant_values=-jnp.inf)
    return nn.max_pool(
        x, window_shape=(window, window), strides=(stride, stride), padding="VALID"
    )


def blur(x: jax.Array) -> jax.Array:
    """x [B, H, W, C] -> the same, each channel under [1, 2, 1] x [1, 2, 1] / 16.

    Zeros are outside. It keeps aliases from what then takes every second position (Zhang,
    arXiv:1904.11486).
    """
    # Shifted sums: measured 3 to 20 times as fast on a CPU as a convolution by channels.
    for axis in (1, 2):
        size = x.shape[axis]
        wide = jnp.pad(x, [(int(i == axis),) * 2 for i in range(x.ndim)])
        before, here, after = (
            jax.lax.slice_in_dim(wide, start, start + size, axis=axis)
            for start in (0, 1, 2)
        )
        x = 0.25 * before + 0.5 * here + 0.25 * after
    return x


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
        conv_general_dilated=convolve,
        name=name,
    )
