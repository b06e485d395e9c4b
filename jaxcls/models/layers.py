"""Layers and helpers that several families share."""

import contextlib
import inspect
import math
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
# More than any published model has.
_MOST_BLOCKS = 1_000
# He et al. (arXiv:1502.01852), by the names of `weight_init`.
HES = {
    fan: initializers.variance_scaling(2.0, fan, "normal") for fan in ("fan_out", "fan_in")
}
HE = HES["fan_out"]
LECUN = initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


class Output(NamedTuple):
    """The outputs of a model for B images, both float32.

    logits: [B, K]. embed [B, D]: the input of the head.
    """

    logits: jax.Array
    embed: jax.Array


def head(
    x: jax.Array,
    num_classes: int,
    kernel_init: nn.initializers.Initializer = LECUN,
    bias: bool = True,
) -> Output:
    """Maps features [B, D] to `Output` by one float32 dense layer with the name "head".

    Call it within a model. Fine-tuning replaces the layer by its name.
    """
    x = x.astype(jnp.float32)
    dense = nn.Dense(num_classes, use_bias=bias, kernel_init=kernel_init, name="head")
    return Output(dense(x), x)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Computes the exact GELU (Hendrycks and Gimpel, arXiv:1606.08415).

    Its gradient keeps x alone and computes the rest again, in float32: JAX's would keep
    float32 arrays of a bfloat16 x.
    """
    return nn.gelu(x, approximate=False)


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, grads: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    below = 0.5 * jax.lax.erfc(-wide * np.float32(np.sqrt(0.5)))
    density = jnp.exp(-0.5 * jnp.square(wide)) * np.float32(1 / np.sqrt(2 * np.pi))
    return (((below + wide * density) * grads).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@jax.custom_vjp
def gelu_tanh(x: jax.Array) -> jax.Array:
    """Computes GELU by its approximation with tanh, the default of Flax and TensorFlow.

    Its gradient keeps x alone, as that of `gelu`.
    """
    return nn.gelu(x, approximate=True)


def _gelu_tanh_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu_tanh(x), x


def _gelu_tanh_backward(x: jax.Array, grads: jax.Array) -> tuple[jax.Array]:
    _, pull = jax.vjp(nn.gelu, x.astype(jnp.float32))
    return (pull(grads.astype(jnp.float32))[0].astype(x.dtype),)


gelu_tanh.defvjp(_gelu_tanh_forward, _gelu_tanh_backward)


def gelu_quick(x: jax.Array) -> jax.Array:
    """Computes GELU by its approximation x * sigmoid(1.702 x), of OpenAI's CLIP."""
    return x * nn.sigmoid(1.702 * x)


# By the names of a model's option `gelu`.
GELUS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "exact": gelu,
    "tanh": gelu_tanh,
    "quick": gelu_quick,
}


def drop_path(x: jax.Array, rate: float, train: bool, rescale: bool = True) -> jax.Array:
    """Returns a branch x [B, ...], or 0 for examples that stochastic depth drops.

    Huang et al., arXiv:1603.09382. Each example is dropped with probability `rate`; the
    others are scaled by 1 / (1 - rate) if `rescale`, else they stay.
    """
    each = tuple(range(1, x.ndim))
    drop = nn.Dropout(rate, broadcast_dims=each, deterministic=not train)
    if rescale:
        return drop(x)
    kept = drop(jnp.ones((len(x), *[1] * len(each)), x.dtype)) > 0
    return jnp.where(kept, x, 0)


# By the names of `drop_path_mode`: (rate of the last block, blocks) -> the blocks' rates.
DROP_PATH_MODES: dict[str, Callable[[float, int], list[float]]] = {
    "rising": lambda last, depth: [last * i / max(depth - 1, 1) for i in range(depth)],
    "constant": lambda last, depth: [last] * depth,
}


def drop_rates(last: float, depth: int, mode: str = "rising") -> list[float]:
    """Returns the `drop_path` rates of `depth` blocks: `last` in the last block.

    mode: "rising" linearly from 0, or "constant" in every block.
    """
    return DROP_PATH_MODES[mode](last, depth)


def block_names(stages: Sequence[int]) -> list[tuple[str, int, int]]:
    """Returns (name, stage, index in the stage) of every block.

    stages: the number of blocks of each stage. Stages and indices count from 0.
    """
    return [
        (f"stage{stage + 1}_block{i + 1}", stage, i)
        for stage, blocks in enumerate(stages)
        for i in range(blocks)
    ]


def check_depth(blocks: int, what: str, example: str) -> None:
    """Raises `ValueError` for more than 1,000 blocks, which compile for many minutes.

    what: The options that make them. example: Options that work, for the message.
    """
    if blocks > _MOST_BLOCKS:
        raise ValueError(
            f"{what} makes {blocks:,} blocks, over {_MOST_BLOCKS:,}; try {example}"
        )


def check_shares(**shares: float) -> None:
    """Raises `ValueError` for a rate that is not at least 0 and below 1."""
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name}={share} must be at least 0 and below 1, such as 0.1")


def check_known(known: Collection[str], **given: str) -> None:
    """Raises `ValueError` for an option that is not one of `known`."""
    for name, value in given.items():
        if value not in known:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(known)}")


class BatchNorm(nn.Module):
    """Batch normalisation over the global batch (Ioffe and Szegedy, arXiv:1502.03167).

    Maps images [B, ..., C] to the same shape in `dtype`. Statistics are float32.
    momentum: running statistics become momentum * old + (1 - momentum) * batch.
    unbiased: the running variance takes N/(N-1) times the batch variance, as in PyTorch;
    Flax takes the biased variance. Training normalises by the biased one in both.
    use_scale: learn a scale beside the bias.
    If the collection "frozen" has this layer's statistics, training keeps the running
    statistics and normalises by them: see `jaxcls.learning.param_groups`.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = True
    dtype: Dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    use_scale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, groups: int = 1) -> jax.Array:
        """Normalises each group of rows by its statistics; row r is in group r % groups.

        The running statistics take one update, by the means over the groups of mean and
        variance. Raises `ValueError` if `groups` does not divide the batch.
        """
        shape = (x.shape[-1],)
        mean_var = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        given = x.shape
        if train and not self.has_variable("frozen", "mean"):
            x = _grouped(x, groups)
            axes = tuple(i for i in range(x.ndim - 1) if groups == 1 or i != 1)
            if not self.is_initializing() and math.prod(x.shape[i] for i in axes) == 1:
                raise InputError(
                    f"{'/'.join(self.path)} would normalise one value a channel by itself,"
                    f" which gives 0, for images {list(given)} in {groups} group(s); give"
                    " a larger batch_size, fewer model.batch_norm_groups, or larger images"
                )
            wide = x.astype(jnp.float32)
            mean = wide.mean(axes)
            # One pass over memory, not two. The maximum removes a negative rounding error.
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
        # Subtracts the mean first: folded into the shift, a large mean costs precision.
        return ((x - mean) * factor + shift).astype(self.dtype).reshape(given)


def _grouped(x: jax.Array, groups: int) -> jax.Array:
    """Reshapes x [B, ..., C] to [B / groups, groups, ..., C]; one group leaves x."""
    if groups < 1 or x.shape[0] % groups:
        raise ValueError(f"groups={groups} must divide the batch, of {x.shape[0]} rows")
    # Strided groups: rows stay on their devices, which contiguous groups would not allow.
    return x if groups == 1 else x.reshape(-1, groups, *x.shape[1:])


def _ungrouped(statistics: jax.Array) -> jax.Array:
    """Returns [C]: the mean over the groups of [groups, C], or [C] unchanged."""
    return statistics.mean(0) if statistics.ndim == 2 else statistics


def _against(each: jax.Array, ndim: int) -> jax.Array:
    """Reshapes [C] or [groups, C] to broadcast against an array of `_grouped`."""
    *groups, features = each.shape
    positions = (1,) * (ndim - 2 - len(groups))
    return each.reshape(1, *groups, *positions, features)


@contextlib.contextmanager
def batch_norm_groups(groups: int) -> Iterator[None]:
    """Makes every `BatchNorm` of a model that is traced within the context see groups.

    Row r of a training batch is in group r % groups. A function that was jitted outside the
    context keeps its trace.
    """

    def passing(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        is_norm = isinstance(context.module, BatchNorm)
        if is_norm and context.method_name == "__call__":
            kwargs = {**kwargs, "groups": groups}
        return call(*args, **kwargs)

    with nn.intercept_methods(passing):
        yield


def blocks_of(groups: Sequence[Sequence[str]]) -> set[str]:
    """Returns the names of a model's blocks among its layers, as `groups()` gives them."""
    names = {name for group in groups for name in group}
    return {name for name in names if re.fullmatch(r"(stage\d+_)?block\d+", name)}


def keep_products(primitive: Any, *_: Any, **__: Any) -> bool:
    """Says whether a primitive's outputs are kept: convolutions' and products' alone."""
    return primitive.name in ("conv_general_dilated", "dot_general")


@contextlib.contextmanager
def rematerialised(
    blocks: Collection[str],
    whole: Callable[[Any], Any] | None = None,
    policy: Callable[..., bool] | None = None,
) -> Iterator[None]:
    """Makes each of `blocks` recompute its activations in the gradient.

    This is gradient checkpointing (Chen et al., arXiv:1604.06174). It applies to models
    that are traced within the context. The recompute uses the same keys, and parameters
    keep their names.

    whole: A function that a block's parameters pass first; it is recomputed too.
    policy: Tells of a primitive whether its outputs are kept, as `jax.checkpoint` asks
        it. By default a block keeps only its inputs.
    """
    # Flax calls the interceptors again for a lifted method.
    within: list[str] = []

    def passing(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, is_call = context.module, context.method_name == "__call__"
        if within or not is_call or module.name not in blocks:
            return call(*args, **kwargs)
        within.append(str(module.name))
        try:
            raw = inspect.unwrap(type(module).__call__)
            if whole:
                raw = nn.map_variables(raw, "params", whole)
            # `train` is static, because the trace depends on it.
            again = nn.remat(raw, static_argnums=(2,), policy=policy)
            return again(module, *args, **kwargs)
        finally:
            within.clear()

    with nn.intercept_methods(passing):
        yield


class FeatureMap(nn.Module):
    """The identity of x [B, H, W, C], which makes a feature map visible to saliency.

    Saliency reads the outputs of modules. Use it for maps that end in a function, such as
    ReLU: see `jaxcls.report.saliency`.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def max_pool(x: jax.Array, *, window: int, stride: int, padding: int = 0) -> jax.Array:
    """Returns the maxima of x [B, H, W, C] over square windows.

    Padding is an explicit pad with -inf, then VALID: converters to ONNX get the padded form
    of `reduce_window` silently wrong. `nn.max_pool` gets only keywords: the converters'
    replacement takes no others.
    """
    if padding:
        sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        x = jnp.pad(x, sides, constant_values=-jnp.inf)
    return nn.max_pool(
        x, window_shape=(window, window), strides=(stride, stride), padding="VALID"
    )


def blur(x: jax.Array) -> jax.Array:
    """Filters each channel of x [B, H, W, C] by [1, 2, 1] x [1, 2, 1] / 16.

    The padding is 0. The filter reduces aliasing in a following subsampling by 2 (Zhang,
    arXiv:1904.11486).
    """
    # Shifted sums measured 3 to 20 times as fast on a CPU as a depthwise convolution.
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
    """Raises `InputError` for images [B, H, W, C] with height or width below `least`."""
    height, width = images.shape[1:3]
    if min(height, width) < least:
        raise InputError(
            f"{model} needs images of at least {least} pixels, and gets"
            f" {width}x{height}; end data.train_ops and data.eval_ops in a larger size,"
            " such as resize(224)"
        )


def adaptive_mean(x: jax.Array, size: int) -> jax.Array:
    """Averages x [B, H, W, C] over windows that cover it, to [B, size, size, C].

    Window i of H positions goes from floor(i H / size) to ceil((i + 1) H / size), as in
    PyTorch's adaptive pooling. Neighbours may overlap.
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
    """Returns the mean of x [B, H, W, C] over the positions, [B, C] float32."""
    return x.astype(jnp.float32).mean(axis=(1, 2))


def conv(
    features: int,
    kernel: int,
    stride: int = 1,
    *,
    dtype: Dtype,
    bias: bool = False,
    name: str | None = None,
    padding: Sequence[tuple[int, int]] | str | None = None,
    groups: int = 1,
    kernel_init: nn.initializers.Initializer = HE,
) -> nn.Conv:
    """Returns a square convolution, by default padded by kernel // 2 as in PyTorch.

    padding: The pads of height and width, or "SAME" as in TensorFlow.
    """
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
