"""Optimizers: they turn gradients into updates, which are added to the parameters.

Transformations nest from the inside out: an entry of `OPTIMIZERS`, whose updates assume a
rate of 1; `clip`; `train_only`; `at_rate`, which multiplies by the learning rate; an
optional entry of `wrappers.WRAPPERS`; `until_stop`. `apply` adds the updates to the params.

The rate ``lr`` is an argument of `update`: the schedule at `State.step`, times the scale
of `State.plateau` if there is one. No second counter can drift from it, and the logged rate
is the rate in use. Optimizer states hold arrays only.

An entry places its weight decay. Coupled decay is added to the gradient: L2, as in PyTorch.
Decoupled decay is added to the update, so the rate multiplies it (arXiv:1711.05101).
"""

import functools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxcls.config.calls import check_range
from jaxcls.learning.param_groups import ParamGroups, map_named, searcher

Tree = Any
Optimizer: TypeAlias = optax.GradientTransformation
# A tree of parameters -> a factor for each of its arrays.
Scales = Callable[[Tree], Tree]


# Weight decay.


def decay_weights(weight_decay: float, scales: Scales) -> Optimizer:
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
    multiplied by the factor of each expression of `factors` that matches the path.
    """

    def scale(name: str, param: Any) -> float:
        found = 1.0 if re.search(pattern, name) else 0.0
        for text, factor in factors.items():
            found *= factor if re.search(text, name) else 1.0
        return found

    return functools.partial(map_named, scale)


# Optimizers.


def sgd(
    decay: Optimizer, momentum: float = 0.9, nesterov: bool = True, decoupled: bool = False
) -> Optimizer:
    """Returns SGD with momentum (Sutskever et al., 2013), as PyTorch without dampening."""
    check_range("[0, 1)", 0.9, momentum=momentum)
    trace = optax.trace(momentum, nesterov) if momentum else optax.identity()
    return _decayed(trace, decay, decoupled)


def _adam(
    decoupled: bool,
    nesterov: bool,
    decay: Optimizer,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> Optimizer:
    """Returns Adam (Kingma and Ba, arXiv:1412.6980), or AdamW if the decay is decoupled.

    nesterov: True is NAdamW (Dozat, 2016). The two terms of the momentum each have their
        bias correction, as in the paper for a constant b1. timm corrects their sum as Adam
        does, so its first steps are longer. PyTorch's NAdam also changes b1 from step to
        step.
    """
    return _decayed(_moments(b1, b2, eps, nesterov), decay, decoupled)


def lamb(
    decay: Optimizer,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    adapt_on: str = "kernel$",
) -> Optimizer:
    """Returns LAMB (You et al., arXiv:1904.00962): Adam with a trust ratio for each array.

    adapt_on: A regular expression on paths. The update of a matching parameter, decay
        included, is scaled to the norm of the parameter; any other keeps Adam's. The
        default is the usual set of decayed parameters, as in published code; "" is the
        algorithm of the paper.

    Published recipes with timm's LAMB also clip the global gradient norm at 1.
    """
    search = searcher("adapt_on", adapt_on, "^head/")

    def adapted(tree: Tree) -> Tree:
        return map_named(lambda path, _: bool(search(path)), tree)

    adapt = optax.masked(optax.scale_by_trust_ratio(), adapted)
    return optax.chain(_moments(b1, b2, eps), decay, adapt, optax.scale(-1.0))


def lion(decay: Optimizer, b1: float = 0.9, b2: float = 0.99) -> Optimizer:
    """Returns Lion (Chen et al., arXiv:2302.06675) with decoupled decay."""
    check_range("[0, 1)", 0.9, b1=b1, b2=b2)
    return _decayed(optax.scale_by_lion(b1, b2), decay, decoupled=True)


def rmsprop(
    decay: Optimizer,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    tensorflow: bool = False,
    decoupled: bool = False,
) -> Optimizer:
    """Returns RMSProp (Tieleman and Hinton, 2012), as in PyTorch.

    alpha: The decay of the mean square.
    tensorflow: True follows TensorFlow 1, which trained EfficientNet and MobileNet (timm's
        rmsproptf). Then `eps` is inside the square root, the mean square starts at 1, and
        the momentum accumulates updates times the rate.
    """
    check_range("[0, 1)", 0.9, alpha=alpha, momentum=momentum)
    check_range("(0, inf)", 1e-8, eps=eps)
    start = 1.0 if tensorflow else 0.0
    parts = [optax.scale_by_rms(alpha, eps, start, eps_in_sqrt=tensorflow)]
    if momentum:
        parts.append(_trace_at_rate(momentum) if tensorflow else optax.trace(momentum))
    return _decayed(optax.chain(*parts), decay, decoupled)


def adafactor(
    decay: Optimizer,
    momentum: float = 0.9,
    decay_rate: float = 0.8,
    b2_cap: float = 0.999,
    min_dim: int = 32,
) -> Optimizer:
    """Returns Adafactor (Shazeer and Stern, arXiv:1804.04235) with decoupled decay.

    It is the form of ViT-G (Zhai et al., arXiv:2106.04560), except for a float32 momentum.
    The decay of the mean square at step t is 1 - t ** -decay_rate, at most `b2_cap`. The
    mean square is factored into rows and columns if two axes have at least `min_dim`
    entries.
    """
    check_range("[0, 1)", 0.9, momentum=momentum)
    check_range("(0, inf)", 0.8, decay_rate=decay_rate, b2_cap=b2_cap)
    check_range("[1, inf)", 32, min_dim=min_dim)

    def forget(step: jax.Array, exponent: float) -> jax.Array:
        return jnp.minimum(1.0 - (step + 1.0) ** -exponent, b2_cap)

    parts = [optax.scale_by_factored_rms(True, decay_rate, 0, min_dim, 1e-30, forget)]
    if momentum:
        parts.append(optax.ema(momentum, debias=False, accumulator_dtype=jnp.float32))
    return _decayed(optax.chain(*parts), decay, decoupled=True)


def muon(
    decay: Optimizer,
    momentum: float = 0.95,
    nesterov: bool = True,
    iterations: int = 5,
    rms: float = 0.2,
    adam_on: str = "^head/",
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
) -> Optimizer:
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
    check_range("[0, 1)", 0.9, momentum=momentum)
    check_range("[1, inf)", 5, iterations=iterations)
    check_range("[0, inf)", 0.2, rms=rms)
    search = searcher("adam_on", adam_on, "^head/")

    def label(path: str, param: Any) -> str:
        by_adam = param.ndim not in (2, 4) or (adam_on and search(path))
        return "adam" if by_adam else "muon"

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
        functools.partial(map_named, label),
    )
    return _decayed(step, decay, decoupled=True)


# Clipping: before an optimizer.


def clip(
    optimizer: Optimizer, *, norm: float = 0.0, value: float = 0.0, adaptive: float = 0.0
) -> Optimizer:
    """Returns `optimizer` with its gradients clipped first; 0 turns a clip off.

    The clips run in this order: adaptive, value, norm.

    adaptive: The largest ratio of a unit's gradient norm to its weight norm, which counts
        as at least 1e-3 (Brock et al., arXiv:2102.06171). A unit is a slice of a kernel
        along its last axis (one output), or a whole vector. The head is left out, as in
        the paper.
    value: The largest absolute value of an element.
    norm: The largest norm of the whole gradient, over all parameters.
    """
    chosen = []
    if adaptive:
        chosen.append(_clip_by_unit(adaptive))
    if value:
        chosen.append(optax.clip(value))
    if norm:
        chosen.append(optax.clip_by_global_norm(norm))
    return optax.chain(*chosen, optimizer) if chosen else optimizer


def _clip_by_unit(most: float) -> Optimizer:
    def label(path: str, grad: Any) -> str:
        return "skip" if path.startswith("head/") else str(grad.ndim)

    # The axes are explicit for each rank: optax reads [1, N, D] as D matrices of [1, N].
    by_rank = {
        str(rank): optax.adaptive_grad_clip(most, axis=tuple(range(max(rank - 1, 1))))
        for rank in range(1, 6)
    }
    scalar, skip = optax.adaptive_grad_clip(most), optax.identity()
    by_label = {**by_rank, "0": scalar, "skip": skip}
    return optax.partition(by_label, functools.partial(map_named, label))


# Param groups and the rate.


def train_only(optimizer: Optimizer, parts: ParamGroups) -> Optimizer:
    """Returns `optimizer` for the trained parameters only; frozen ones have no state."""

    def mask(params: Tree) -> Tree:
        return map_named(lambda path, _: parts[path].scale > 0, params)

    return optax.masked(optimizer, mask)


def at_rate(
    optimizer: Optimizer, parts: Callable[[], ParamGroups]
) -> optax.GradientTransformationExtraArgs:
    """Returns `optimizer` with its updates times the rate; `update` takes `lr` and `step`.

    An update is 0 if its parameter is frozen or `step` is before its start.

    parts: Called at an update only, since the start of a group needs the length of an
        epoch.
    """

    inner = optax.with_extra_args_support(optimizer)

    def update(
        grads: Tree, state: Tree, params: Tree, lr: jax.Array, step: jax.Array, **more: Any
    ) -> tuple[Tree, Tree]:
        known = parts()

        def rated(path: str, change: jax.Array) -> jax.Array:
            part = known[path]
            if not part.scale:
                return jnp.zeros_like(change)
            new = (lr if part.scale == 1.0 else lr * part.scale) * change
            return jnp.where(step >= part.start, new, 0.0) if part.start else new

        updates, state = inner.update(grads, state, params, lr=lr, step=step, **more)
        return map_named(rated, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def apply(params: Tree, updates: Tree) -> Tree:
    """Returns params + updates; an update of 0 keeps the bits of a param, even -0.0."""
    return jax.tree.map(lambda p, u: jnp.where(u == 0, p, p + u), params, updates)


# Helpers.


def _decayed(step: Optimizer, decay: Optimizer, decoupled: bool) -> Optimizer:
    """Chains `step`, `decay` (last if decoupled, else first) and a factor of -1."""
    both = (step, decay) if decoupled else (decay, step)
    return optax.chain(*both, optax.scale(-1.0))


def _moments(b1: float, b2: float, eps: float, nesterov: bool = False) -> Optimizer:
    check_range("[0, 1)", 0.9, b1=b1, b2=b2)
    check_range("(0, inf)", 1e-8, eps=eps)
    return optax.scale_by_adam(b1, b2, eps, nesterov=nesterov)


def _trace_at_rate(momentum: float) -> optax.GradientTransformationExtraArgs:
    """Accumulates a momentum of updates times ``lr`` and divides it by ``lr`` again.

    `at_rate` must follow. If lr is 0, the momentum decays and no parameter moves.
    """

    def update(
        updates: Tree, state: optax.TraceState, params: Tree, *, lr: jax.Array, **more: Any
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


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = MappingProxyType(
    {
        "adafactor": adafactor,
        "adam": functools.partial(_adam, False, False),
        "adamw": functools.partial(_adam, True, False),
        "lamb": lamb,
        "lion": lion,
        "muon": muon,
        "nadamw": functools.partial(_adam, True, True),
        "rmsprop": rmsprop,
        "sgd": sgd,
    }
)
