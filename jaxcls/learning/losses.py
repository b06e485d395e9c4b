"""Losses: ``(logits [B, K] float32, targets [B, K] float32) -> [B]``, one an example.

Targets are distributions over the classes: one-hot, smoothed or mixed.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcls.errors import InputError, did_you_mean

Loss = Callable[[jax.Array, jax.Array], jax.Array]
Tree = Any


def softmax() -> Loss:
    """Returns the cross-entropy of softmax(logits) against the targets."""
    return optax.losses.softmax_cross_entropy


def sigmoid(threshold: float = 0.0, reduce: str = "mean") -> Loss:
    """Returns the binary cross-entropy of every class, as for multi-label images.

    threshold: A target above it counts as 1 and any other as 0; arXiv:2110.00476 ("ResNet
        strikes back") uses 0.2. 0 keeps the targets.
    reduce: "mean" over the classes, so that K does not scale the gradient: the rates of
        that paper and of DeiT-III (arXiv:2204.07118) assume it. "sum" is K times as large,
        as in big_vision.

    Raises ValueError for a threshold or reduce out of range.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold={threshold} must be from 0 to below 1, such as 0.2")
    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce={reduce!r} must be 'mean' or 'sum', such as 'mean'")

    def apply(logits: jax.Array, targets: jax.Array) -> jax.Array:
        if threshold:
            targets = (targets > threshold).astype(jnp.float32)
        losses = optax.losses.sigmoid_binary_cross_entropy(logits, targets)
        return losses.mean(-1) if reduce == "mean" else losses.sum(-1)

    return apply


def focal(gamma: float = 2.0) -> Loss:
    """Returns ``-sum_c target_c (1 - p_c)^gamma log p_c`` with ``p = softmax(logits)``.

    Lin et al., arXiv:1708.02002, section 3.2, over several classes and with soft targets.
    Confident predictions count less; a gamma of 0 is `softmax`. For the paper's alpha use
    class weights. Raises ValueError for a gamma below 0.
    """
    if gamma < 0:
        raise ValueError(f"gamma={gamma} must be at least 0, such as 2.0")

    def apply(logits: jax.Array, targets: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(logits)
        # Not 0: there a power below 1 has no finite gradient.
        rest = jnp.maximum(1.0 - jnp.exp(log_p), jnp.finfo(jnp.float32).tiny)
        return -(targets * rest**gamma * log_p).sum(-1)

    return apply


def poly(epsilon: float = 1.0) -> Loss:
    """Returns Poly-1: `softmax` plus ``epsilon * sum_c target_c (1 - p_c)``.

    Leng et al., arXiv:2204.12511, who find 2 best for ImageNet. Raises ValueError for an
    epsilon below -1.
    """
    if epsilon < -1:
        raise ValueError(f"epsilon={epsilon} must be at least -1, such as 1.0")

    def apply(logits: jax.Array, targets: jax.Array) -> jax.Array:
        return optax.losses.poly_loss_cross_entropy(logits, targets, epsilon=epsilon)

    return apply


def smooth(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Returns targets [B, K] float32 of labels [B] int32, smoothed over all classes.

    Every class gets ``smoothing / K`` and the label also ``1 - smoothing`` (Szegedy et al.,
    arXiv:1512.00567, section 7).
    """
    hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return optax.losses.smooth_labels(hot, smoothing)


def distill(
    student_logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> jax.Array:
    """Returns ``T^2 KL(teacher || student)`` of softmax(logits / T), [B, K] twice -> [B].

    Hinton et al., arXiv:1503.02531, section 2. The factor T^2 keeps the size of the
    gradients independent of the temperature, which must be above 0.
    """
    student = jax.nn.log_softmax(student_logits / temperature)
    teacher = jax.nn.log_softmax(teacher_logits / temperature)
    apart = optax.losses.kl_divergence_with_log_targets(student, teacher)
    return temperature**2 * apart


def weighted(loss: Loss, weights: np.ndarray) -> Loss:
    """Returns `loss` with each example's value times ``sum_c target_c weights_c``.

    weights: [K].

    The sum is not divided by the weights of a batch. Balanced weights average to 1 over the
    data. A divisor of each batch would change the gradient under accumulation.
    """

    def apply(logits: jax.Array, targets: jax.Array) -> jax.Array:
        scale = jnp.einsum(
            "bk,k->b", targets, jnp.asarray(weights), precision=jax.lax.Precision.HIGHEST
        )
        return scale * loss(logits, targets)

    return apply


def penalty(params: Tree, mask: Tree, l1: float, l2: float) -> jax.Array:
    """Returns ``l1 * sum |p| + l2 * sum p^2`` over the masked params, [] float32.

    mask: A tree of bools like params; True selects a param. The square has no factor of one
        half: its gradient is ``2 l2 p``.
    """
    chosen = jax.tree.map(lambda p, keep: p if keep else None, params, mask)
    total = jnp.zeros((), jnp.float32)
    for p in map(jnp.float32, jax.tree.leaves(chosen)):
        # Not jnp.abs: its gradient at 0 is 1, and a param of 0 must stay 0.
        magnitude = p * jax.lax.stop_gradient(jnp.sign(p))
        total += l1 * magnitude.sum() + l2 * jnp.square(p).sum()
    return total


_KEY = "loss.class_weights"
# One "name: weight"; a name with a comma is written between quotes.
_NAMED = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^,"']+?))\s*:\s*([^,:]*)(?:,|$)""")


def parse_weights(
    text: str, class_names: Sequence[str], counts: Callable[[], np.ndarray]
) -> np.ndarray:
    """Returns class weights [K] float32 from "balanced", "1, 2, 0.5" or "cat: 2, dog: 1".

    "balanced" is ``n / (K * count)``, as in scikit-learn; only it calls `counts`, which
    returns the examples of each class [K]. Numbers are in class order. A class without a
    name in the text has weight 1. Raises `InputError` for any other text.
    """
    if text.strip() == "balanced":
        return _balanced(class_names, np.asarray(counts()))
    named = ":" in text
    weights = _named(text, class_names) if named else _listed(text, class_names)
    if not any(weights):
        raise _refused(text, "weighs every class 0", class_names)
    return np.asarray(weights, np.float32)


def _balanced(class_names: Sequence[str], counts: np.ndarray) -> np.ndarray:
    if not counts.all():
        lacking = class_names[int(np.argmin(counts))]
        raise InputError(
            f"{_KEY}='balanced' needs an example of every class and {lacking!r} has none;"
            f" give the weights, such as {f'{class_names[0]}: 2'!r}"
        )
    return np.asarray(counts.sum() / (len(counts) * counts), np.float32)


def _listed(text: str, class_names: Sequence[str]) -> list[float]:
    weights = [_weight(word, text, class_names) for word in text.split(",")]
    if len(weights) != len(class_names):
        said = f"has {len(weights)} numbers for {len(class_names)} classes"
        raise _refused(text, said, class_names)
    return weights


def _named(text: str, class_names: Sequence[str]) -> list[float]:
    weights: dict[str, float] = {}
    at = 0
    while at < len(text.rstrip(", ")):
        item = _NAMED.match(text, at)
        if not item:
            said = f"is not of 'name: weight' from {text[at:].strip()!r} on"
            raise _refused(text, said, class_names)
        name = next(group for group in item.groups()[:3] if group is not None)
        if name not in class_names:
            said = f"names the unknown class {name!r}{did_you_mean(name, class_names)}"
            raise _refused(text, said, class_names)
        if name in weights:
            raise _refused(text, f"names {name!r} twice", class_names)
        weights[name] = _weight(item[4], text, class_names)
        at = item.end()
    return [weights.get(name, 1.0) for name in class_names]


def _weight(word: str, text: str, class_names: Sequence[str]) -> float:
    try:
        weight = float(word)
    except ValueError:
        raise _refused(text, f"has {word.strip()!r} for a weight", class_names) from None
    if not 0 <= weight <= float(np.finfo(np.float32).max):
        said = f"has {word.strip()} for a weight, which must be finite and at least 0"
        raise _refused(text, said, class_names)
    return weight


def _refused(text: str, said: str, class_names: Sequence[str]) -> InputError:
    return InputError(
        f"{_KEY}={text!r} {said}; give 'balanced', {len(class_names)} numbers, or names,"
        f" such as {f'{class_names[0]}: 2'!r}"
    )


LOSSES: dict[str, Callable[..., Loss]] = {
    "focal": focal,
    "poly": poly,
    "sigmoid": sigmoid,
    "softmax": softmax,
}
