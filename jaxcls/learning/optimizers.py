"""Optimizers: gradients in, updates to be added to the parameters out.

What clips gradients is around an entry of `OPTIMIZERS` (clipping.py), whose updates are
a step at a rate of 1; what multiplies these by the rate is around that (`parts.at_rate`);
around it, if anything, an entry of `wrappers.WRAPPERS`. The rate is ``lr``, an argument of
`update` and a function of `State.step` alone: no second counter can drift from it, and
what is logged is what was used. States are arrays only.

An entry decides where its weight decay goes. Coupled: added to the gradient, L2 as
PyTorch has it. Decoupled: added to the step, so times the rate (arXiv:1711.05101).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

Tree = Any
# For each array of a tree of parameters, a factor.
Scales = Callable[[Tree], Tree]


def path_name(path: Any) -> str:
    """A jax key path as ``stage1/block2/conv1/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


# Weight decay.


def decay_weights(weight_decay: float, scales: Scales) -> optax.GradientTransformation:
    """updates + weight_decay * scale * params; a scale of 0 leaves the very updates."""

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
    """1 where the path of a parameter, such as ``head/kernel``, has `pattern`; else 0.

    Times the factor of each regular expression of `factors` that the path has.
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
    """SGD with momentum (Sutskever et al., 2013), as PyTorch's without dampening."""
    _check_shares(momentum=momentum)
    trace = optax.trace(momentum, nesterov) if momentum else optax.identity()
    return _decayed(trace, decay, decoupled)


def adam(
    decay: optax.GradientTransformation,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, arXiv:1412.6980); decay is coupled, as PyTorch's is."""
    return _decayed(_moments(b1, b2, eps), decay, decoupled=False)


def adamw(
    decay: optax.GradientTransformation,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101); decay is decoupled, times lr."""
    return _decayed(_moments(b1, b2, eps), decay, decoupled=True)


def nadamw(
    decay: optax.GradientTransformation,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW with Nesterov's momentum (Dozat, 2016); decay is decoupled.

    The two parts of the momentum are each corrected for their bias, as the paper has it
    for a constant b1; timm's corrects their sum as Adam does, so that its first steps are
    longer. PyTorch's NAdam also changes b1 from step to step.
    """
    return _decayed(_moments(b1, b2, eps, nesterov=True), decay, decoupled=True)


def lamb(
    decay: optax.GradientTransformation,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    adapt_on: str = "kernel$",
) -> optax.GradientTransformation:
    """LAMB (You et al., arXiv:1904.00962): Adam's step and decay, as long as the weights.

    adapt_on: a regular expression on paths, of which parameters each step is scaled to the
    norm of the parameter; the rest take Adam's. As published code has it, by default what
    usually decays; "" is the paper's own algorithm. Published recipes with timm's LAMB
    also clip the global gradient norm at 1.
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
    """Lion (Chen et al., arXiv:2302.06675); decay is decoupled."""
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
    """RMSProp (Tieleman and Hinton, 2012), as PyTorch has it.

    alpha: decay of the mean square. tensorflow: as TensorFlow 1 has it, which EfficientNet
    and MobileNet were trained with (timm's rmsproptf): `eps` is inside the square root,
    the mean square begins at 1, and the momentum is one of updates already times the
    rate.
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
    """Adafactor (Shazeer and Stern, arXiv:1804.04235) as ViT-G has it; decay is decoupled.

    The mean square forgets by 1 - t ** -decay_rate at step t, at most `b2_cap`, and is kept
    as rows and columns where two axes have `min_dim`. clip_rms: largest root mean square
    of a step, 0: any. relative: times that of the parameter. Defaults are those of Zhai
    et al. (arXiv:2106.04560) but for a momentum of float32; the first paper's are
    momentum=0.0, b2_cap=1.0, min_dim=128, clip_rms=1.0, relative=True.
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
    """Muon (Jordan, 2024): momentum made nearly orthogonal; decay is decoupled.

    Kernels of two axes and of convolutions, [h, w, in, out] taken as [h * w * in, out];
    by AdamW (b1, b2, eps): all else, and what `adam_on`, a regular expression on paths,
    matches; "" matches nothing.
    iterations: of Newton and Schulz. rms: each step has the root mean square that is
    usual of Adam, so that one rate suits both (Liu et al., arXiv:2502.16982); 0: Jordan's
    own scale, sqrt(max(1, out / in)), whose rates are some ten times as high.
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


# Pieces.


def _decayed(
    step: optax.GradientTransformation,
    decay: optax.GradientTransformation,
    decoupled: bool,
) -> optax.GradientTransformation:
    """`step` with `decay` before or after it, downhill."""
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
    """optax's, but for a variance that rounding has made negative, where that is NaN."""

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
    """A momentum of updates times ``lr``, divided by it again: `at_rate` is to follow.

    Where lr is 0 the momentum decays and nothing moves.
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
    """The search of a regular expression; raises ValueError naming the option `name`."""
    try:
        return re.compile(pattern).search
    except re.error as error:
        raise ValueError(
            f"{name}={pattern!r} is not a regular expression ({error}), such as '^head/'"
        ) from None


def matcher(name: str, pattern: str) -> Callable[[str], bool]:
    """Whether a path has `pattern`, where "" is no pattern and matches nothing."""
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
