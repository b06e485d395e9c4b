"""Optimizers: they turn gradients into updates, which are added to the parameters.

Transformations nest from the inside out: an entry of `OPTIMIZERS`, whose updates assume a
rate of 1; clipping (clipping.py); the rate (`param_groups.at_rate`); an optional entry of
`wrappers.WRAPPERS`.

The rate ``lr`` is an argument of `update` and a function of `State.step` alone. No second
counter can drift from it, and the logged rate is the rate in use. Optimizer states hold
arrays only.

An entry places its weight decay. Coupled decay is added to the gradient: L2, as in PyTorch.
Decoupled decay is added to the update, so the rate multiplies it (arXiv:1711.05101).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

Tree = Any
# A tree of parameters -> a factor for each of its arrays.
Scales = Callable[[Tree], Tree]


def path_name(path: Any) -> str:
    """Returns a jax key path as text, such as ``stage1/block2/conv1/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


# Weight decay.


def decay_weights(weight_decay: float, scales: Scales) -> optax.GradientTransformation:
    """Returns a transformation that adds weight_decay * scale * params to the updates.

    A scale of 0 leaves the updates bit for bit the same.
    """

    def update(updates: Tree, params: Tree) -> Tree:
        return jax.tree.map(
            lambda u, p, s: u + weight_decay * s * p if weight_decay * s else u,
            updates,
            params,
            scales(params),
        )

    def decays(params: Tree) -> Tree:
        return jax.tree.map(bool, scales(params))

    return optax.masked(optax.stateless(update), decays)


def decay_scales(pattern: str, factors: Mapping[str, float]) -> Scales:
    """Returns a function of params that gives each parameter its share of the decay.

    The share is 1 if `pattern` matches the path, such as ``head/kernel``; else 0. It is
    multiplied by the factor of each expression of `factors` that matches the path. Raises
    ValueError for a bad regular expression.
    """
    search = searcher("pattern", pattern)
    each = [(searcher("factors", text), factor) for text, factor in factors.items()]

    def scale(path: Any, param: Any) -> float:
        name = path_name(path)
        found = 1.0 if search(name) else 0.0
        for has, factor in each:
            found *= factor if has(name) else 1.0
        return found

    return lambda params: jax.tree_util.tree_map_with_path(scale, params)


# Optimizers.


def sgd(
    decay: optax.GradientTransformation,
    momentum: float = 0.9,
    nesterov: bool = True,
    decoupled: bool = False,
) -> optax.GradientTransformation:
    """Returns SGD with momentum (Sutskever et al., 2013), as PyTorch without dampening."""
    _check_shares(momentum=momentum)
    trace = optax.trace(momentum, nesterov) if momentum else optax.identity()
    return _decayed(trace, decay, decoupled)


def adam(
    decay: optax.GradientTransformation,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Returns Adam (Kingma and Ba, arXiv:1412.6980) with coupled decay, as in PyTorch."""
    return _decayed(_moments(b1, b2, eps), decay, decoupled=False)


def adamw(
    decay: optax.GradientTransformation,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Returns AdamW (Loshchilov and Hutter, arXiv:1711.05101) with decoupled decay."""
    return _decayed(_moments(b1, b2, eps), decay, decoupled=True)


def nadamw(
    decay: optax.GradientTransformation,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Returns AdamW with Nesterov momentum (Dozat, 2016) and decoupled decay.

    The two terms of the momentum each have their bias correction, as in the paper for a
    constant b1. timm corrects their sum as Adam does, so its first steps are longer.
    PyTorch's NAdam also changes b1 from step to step.
    """
    return _decayed(_moments(b1, b2, eps, nesterov=True), decay, decoupled=True)


def lamb(
    decay: optax.GradientTransformation,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    adapt_on: str = "kernel$",
) -> optax.GradientTransformation:
    """Returns LAMB (You et al., arXiv:1904.00962): Adam with a trust ratio for each array.

    adapt_on: A regular expression on paths. The update of a matching parameter, decay
        included, is scaled to the norm of the parameter; any other keeps Adam's. The
        default is the usual set of decayed parameters, as in published code; "" is the
        algorithm of the paper.

    Published recipes with timm's LAMB also clip the global gradient norm at 1.
    """
    search = searcher("adapt_on", adapt_on)

    def adapted(tree: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: bool(search(path_name(path))), tree
        )

    adapt = optax.masked(optax.scale_by_trust_ratio(), adapted)
    return optax.chain(_moments(b1, b2, eps), decay, adapt, optax.scale(-1.0))


def lion(
    decay: optax.GradientTransformation, b1: float = 0.9, b2: float = 0.99
) -> optax.GradientTransformation:
    """Returns Lion (Chen et al., arXiv:2302.06675) with decoupled decay."""
    _check_shares(b1=b1, b2=b2)
    return _decayed(optax.scale_by_lion(b1, b2), decay, decoupled=True)


def rmsprop(
    decay: optax.GradientTransformation,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    centered: bool = False,
    tensorflow: bool = False,
    decoupled: bool = False,
) -> optax.GradientTransformation:
    """Returns RMSProp (Tieleman and Hinton, 2012), as in PyTorch.

    alpha: The decay of the mean square.
    tensorflow: True follows TensorFlow 1, which trained EfficientNet and MobileNet (timm's
        rmsproptf). Then `eps` is inside the square root, the mean square starts at 1, and
        the momentum accumulates updates times the rate.
    """
    _check_shares(alpha=alpha, momentum=momentum)
    _check_above_0(eps=eps)
    scaled = _scale_by_stddev if centered else optax.scale_by_rms
    start = 1.0 if tensorflow else 0.0
    parts = [scaled(alpha, eps, initial_scale=start, eps_in_sqrt=tensorflow)]
    if momentum:
        parts.append(_trace_at_rate(momentum) if tensorflow else optax.trace(momentum))
    return _decayed(optax.chain(*parts), decay, decoupled)


def adafactor(
    decay: optax.GradientTransformation,
    momentum: float = 0.9,
    decay_rate: float = 0.8,
    b2_cap: float = 0.999,
    min_dim: int = 32,
    clip_rms: float = 0.0,
    relative: bool = False,
    eps: float = 1e-30,
) -> optax.GradientTransformation:
    """Returns Adafactor (Shazeer and Stern, arXiv:1804.04235) with decoupled decay.

    The decay of the mean square at step t is 1 - t ** -decay_rate, at most `b2_cap`. The
    mean square is factored into rows and columns if two axes have at least `min_dim`
    entries.

    clip_rms: The largest root mean square of an update; 0 is no limit.
    relative: True multiplies an update by the root mean square of its parameter.

    The defaults follow ViT-G (Zhai et al., arXiv:2106.04560), except for a float32
    momentum. The original paper has momentum=0.0, b2_cap=1.0, min_dim=128, clip_rms=1.0,
    relative=True.
    """
    _check_shares(momentum=momentum)
    _check_above_0(decay_rate=decay_rate, b2_cap=b2_cap, min_dim=min_dim, eps=eps)

    def forget(step: jax.Array, exponent: float) -> jax.Array:
        return jnp.minimum(1.0 - (step + 1.0) ** -exponent, b2_cap)

    parts = [optax.scale_by_factored_rms(True, decay_rate, 0, min_dim, eps, forget)]
    if clip_rms:
        parts.append(optax.clip_by_block_rms(clip_rms))
    if relative:
        parts.append(optax.scale_by_param_block_rms())
    if momentum:
        parts.append(optax.ema(momentum, debias=False, accumulator_dtype=jnp.float32))
    return _decayed(optax.chain(*parts), decay, decoupled=True)


def muon(
    decay: optax.GradientTransformation,
    momentum: float = 0.95,
    nesterov: bool = True,
    iterations: int = 5,
    rms: float = 0.2,
    adam_on: str = "^head/",
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Returns Muon (Jordan, 2024): orthogonalised momentum, with decoupled decay.

    It trains kernels of two axes and of convolutions; [h, w, in, out] is reshaped to [h * w
    * in, out]. AdamW (b1, b2, eps) trains all other parameters.

    adam_on: A regular expression on paths; AdamW also trains a matching parameter. ""
        matches nothing.
    iterations: The number of Newton-Schulz iterations.
    rms: The root mean square of each update. The default is usual for Adam, so one rate
        suits both (Liu et al., arXiv:2502.16982). 0 is Jordan's scale, sqrt(max(1, out /
        in)), with rates about ten times as high.
    """
    _check_shares(momentum=momentum)
    _check_above_0(iterations=iterations)
    if rms < 0:
        raise ValueError(f"rms={rms} must be at least 0, such as 0.2")
    by_adam = matcher("adam_on", adam_on)

    def label(path: Any, param: Any) -> str:
        is_matrix = param.ndim in (2, 4)
        return "muon" if is_matrix and not by_adam(path_name(path)) else "adam"

    orthogonal = optax.contrib.scale_by_muon(
        ns_steps=iterations,
        beta=momentum,
        nesterov=nesterov,
        weight_dimension_numbers=lambda tree: jax.tree.map(_as_matrix, tree),
    )
    sized = optax.stateless(
        lambda updates, params: jax.tree.map(lambda u: _matrix_scale(u, rms) * u, updates)
    )
    step = optax.partition(
        {"muon": optax.chain(orthogonal, sized), "adam": _moments(b1, b2, eps)},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
    return _decayed(step, decay, decoupled=True)


# Helpers.


def _decayed(
    step: optax.GradientTransformation,
    decay: optax.GradientTransformation,
    decoupled: bool,
) -> optax.GradientTransformation:
    """Chains `step`, `decay` (last if decoupled, else first) and a factor of -1."""
    both = (step, decay) if decoupled else (decay, step)
    return optax.chain(*both, optax.scale(-1.0))


def _moments(
    b1: float, b2: float, eps: float, nesterov: bool = False
) -> optax.GradientTransformation:
    _check_shares(b1=b1, b2=b2)
    _check_above_0(eps=eps)
    return optax.scale_by_adam(b1, b2, eps, nesterov=nesterov)


def _scale_by_stddev(
    alpha: float, eps: float, initial_scale: float, eps_in_sqrt: bool
) -> optax.GradientTransformation:
    """As `optax.scale_by_stddev`, which is NaN if rounding makes a variance negative."""

    def init(params: Tree) -> optax.ScaleByRStdDevState:
        square = optax.tree.full_like(params, initial_scale)
        return optax.ScaleByRStdDevState(optax.tree.zeros_like(params), square)

    def update(
        grads: Tree, state: optax.ScaleByRStdDevState, params: Tree = None
    ) -> tuple[Tree, optax.ScaleByRStdDevState]:
        mean = optax.tree.update_moment(grads, state.mu, alpha, 1)
        square = optax.tree.update_moment(grads, state.nu, alpha, 2)

        def each(grad: jax.Array, mean: jax.Array, square: jax.Array) -> jax.Array:
            variance = jnp.maximum(square - mean**2, 0.0)
            if eps_in_sqrt:
                return grad / jnp.sqrt(variance + eps)
            return grad / (jnp.sqrt(variance) + eps)

        updates = jax.tree.map(each, grads, mean, square)
        return updates, optax.ScaleByRStdDevState(mean, square)

    return optax.GradientTransformation(init, update)


def _trace_at_rate(momentum: float) -> optax.GradientTransformationExtraArgs:
    """Accumulates a momentum of updates times ``lr`` and divides it by ``lr`` again.

    `at_rate` must follow. If lr is 0, the momentum decays and no parameter moves.
    """

    def update(
        updates: Tree,
        state: optax.TraceState,
        params: Tree = None,
        *,
        lr: jax.Array,
        **extra: Any,
    ) -> tuple[Tree, optax.TraceState]:
        trace = jax.tree.map(lambda t, u: momentum * t + lr * u, state.trace, updates)
        back = jnp.where(lr > 0, 1.0 / jnp.where(lr > 0, lr, 1.0), 0.0)
        return jax.tree.map(lambda t: back * t, trace), optax.TraceState(trace)

    return optax.GradientTransformationExtraArgs(optax.trace(momentum).init, update)


def _as_matrix(kernel: jax.Array) -> optax.contrib.MuonDimensionNumbers:
    return optax.contrib.MuonDimensionNumbers(
        tuple(range(kernel.ndim - 1)), kernel.ndim - 1
    )


def _matrix_scale(kernel: jax.Array, rms: float) -> float:
    outputs = kernel.shape[-1]
    inputs = kernel.size // outputs
    if rms:
        return rms * float(max(inputs, outputs)) ** 0.5
    return max(1.0, outputs / inputs) ** 0.5


def searcher(name: str, pattern: str) -> Callable[[str], Any]:
    """Returns the search method of a regular expression.

    Raises ValueError, naming the option `name`, if `pattern` is not a regular expression.
    """
    try:
        return re.compile(pattern).search
    except re.error as error:
        raise ValueError(
            f"{name}={pattern!r} is not a regular expression ({error}), such as '^head/'"
        ) from None


def matcher(name: str, pattern: str) -> Callable[[str], bool]:
    """Returns a function that says whether a path matches `pattern`; "" matches nothing.

    Raises ValueError, naming the option `name`, if `pattern` is not a regular expression.
    """
    search = searcher(name, pattern)
    return lambda path: bool(pattern and search(path))


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name}={share} must be at least 0 and below 1, such as 0.9")


def _check_above_0(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name}={value} must be above 0")


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adafactor": adafactor,
    "adam": adam,
    "adamw": adamw,
    "lamb": lamb,
    "lion": lion,
    "muon": muon,
    "nadamw": nadamw,
    "rmsprop": rmsprop,
    "sgd": sgd,
}
