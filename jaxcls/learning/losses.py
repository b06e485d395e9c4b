"""Losses: ``(logits [B, K] float32, targets [B, K] float32) -> [B]``, one an example.

Targets are distributions over the classes: one-hot, smoothed or mixed. Probabilities are
the softmax of logits, unless the loss has an attribute ``link = "sigmoid"``.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcls.config.calls import check_range
from jaxcls.errors import InputError, did_you_mean, lookup

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

    Raises ValueError for a threshold out of range, InputError for another reduce.
    """
    check_range("[0, 1)", 0.2, threshold=threshold)
    reduced = lookup({"mean": jnp.mean, "sum": jnp.sum}, reduce, "reduce of sigmoid")

    def apply(logits: jax.Array, targets: jax.Array) -> jax.Array:
        if threshold:
            targets = (targets > threshold).astype(jnp.float32)
        losses = optax.losses.sigmoid_binary_cross_entropy(logits, targets)
        return reduced(losses, -1)

    vars(apply)["link"] = "sigmoid"
    return apply


def focal(gamma: float = 2.0) -> Loss:
    """Returns ``-sum_c target_c (1 - p_c)^gamma log p_c`` with ``p = softmax(logits)``.

    Lin et al., arXiv:1708.02002, section 3.2, over several classes and with soft targets.
    Confident predictions count less; a gamma of 0 is `softmax`. For the paper's alpha use
    class weights. Raises ValueError for a gamma below 0.
    """
    check_range("[0, inf)", 2.0, gamma=gamma)

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
    check_range("[-1, inf)", 1.0, epsilon=epsilon)

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


def weighted(loss: Loss, weights: np.ndarray, smoothing: float = 0.0) -> Loss:
    """Returns `loss` with each example's value times ``sum_c label_c weights_c``.

    weights: [K]. smoothing: Of the targets, below 1; label_c is what they were without it,
    so that a rare class keeps its whole weight.

    The sum is not divided by the weights of a batch. Balanced weights average to 1 over the
    data. A divisor of each batch would change the gradient under accumulation.
    """

    def apply(logits: jax.Array, targets: jax.Array) -> jax.Array:
        scale = jnp.einsum(
            "bk,k->b", targets, jnp.asarray(weights), precision=jax.lax.Precision.HIGHEST
        )
        if smoothing:  # It is linear, as a mix is.
            scale = (scale - smoothing * float(weights.mean())) / (1.0 - smoothing)
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
    classes = len(class_names)

    def refused(said: str) -> InputError:
        return InputError(
            f"loss.class_weights={text!r} {said}; give 'balanced', {classes} numbers, or"
            f" names, such as {f'{class_names[0]}: 2'!r}"
        )

    if text.strip() == "balanced":
        examples = np.asarray(counts())
        if not examples.all():
            lacking = class_names[int(np.argmin(examples))]
            raise InputError(
                f"loss.class_weights='balanced' needs an example of every class, and"
                f" {lacking!r} has none; give the weights, such as '{class_names[0]}: 2'"
            )
        return np.asarray(examples.sum() / (classes * examples), np.float32)
    words = dict(enumerate(text.split(",")))
    if ":" in text:
        words = {}
        for *quoted, word in _NAMED.findall(text):
            name = "".join(quoted)
            if name not in class_names:
                near = did_you_mean(name, class_names)
                raise refused(f"names the unknown class {name!r}{near}")
            if class_names.index(name) in words:
                raise refused(f"names {name!r} twice")
            words[class_names.index(name)] = word
        if left := _NAMED.sub("", text).strip(" ,"):
            raise refused(f"is not of 'name: weight' at {left!r}")
    elif len(words) != classes:
        raise refused(f"has {len(words)} numbers for {classes} classes")
    weights = np.ones(classes, np.float32)
    for i, word in words.items():
        try:
            weight = float(word)
        except ValueError:
            weight = np.nan
        if not 0 <= weight <= float(np.finfo(np.float32).max):
            said = f"has {word.strip()!r} for a weight, which must be finite and at least 0"
            raise refused(said)
        weights[i] = weight
    if not weights.any():
        raise refused("weighs every class 0")
    return weights


LOSSES: Mapping[str, Callable[..., Loss]] = MappingProxyType(
    {
        "focal": focal,
        "poly": poly,
        "sigmoid": sigmoid,
        "softmax": softmax,
    }
)
