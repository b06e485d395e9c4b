"""Optimizers and losses of optax by their own names, such as "optax.adabelief(b1=0.95)".

An optimizer is any factory with a `learning_rate` whose updates are proportional to it,
which is checked on three steps: the rate of a run is the schedule's, and is applied around
the optimizer. A loss is any function of (logits, labels) that gives a number an example,
or, if it is of sigmoids, one a class, which `reduce` makes one.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcls.errors import InputError, first_line, lookup
from jaxcls.learning.losses import Loss

PREFIX = "optax."
# Rates of the check; a schedule of a count.
_RATES = (1.0, 0.5, 0.125)


def optimizer(name: str) -> Callable[..., optax.GradientTransformation]:
    """Returns an entry of OPTIMIZERS that makes `name`, such as "optax.adabelief".

    The entry takes the options of optax's factory but `learning_rate`. The decay of
    optim.weight_decay is decoupled. Raises `InputError` if optax has no such factory. The
    entry raises ValueError if its updates are not proportional to the rate, or if it has a
    weight decay of its own beside ours.
    """
    short = name.removeprefix(PREFIX)
    factory = getattr(optax, short, None) or getattr(optax.contrib, short, None)
    taken = inspect.signature(factory).parameters if inspect.isfunction(factory) else {}
    if not factory or "learning_rate" not in taken:
        raise InputError(
            f"optim.name={name!r} is no optimizer of optax with a learning_rate; try"
            " 'optax.adabelief'"
        )

    def make(decay: optax.GradientTransformation, **options: Any) -> Any:
        kept = options.get("weight_decay", getattr(taken.get("weight_decay"), "default", 0))
        if kept and _decays(decay):
            raise ValueError(
                f"weight_decay={kept} is its own, beside optim.weight_decay; set one of"
                " them to 0"
            )
        _check_rate(factory, options)
        made = factory(learning_rate=1.0, **options)
        return optax.chain(made, optax.scale(-1.0), decay, optax.scale(-1.0))

    options = [each for key, each in taken.items() if key != "learning_rate"]
    ours = inspect.Parameter("decay", inspect.Parameter.KEYWORD_ONLY)
    vars(make)["__signature__"] = _keywords([*options, ours])
    return make


def loss(name: str) -> Callable[..., Loss]:
    """Returns an entry of LOSSES that makes `name`, such as "optax.sigmoid_focal_loss".

    The entry takes the options of optax's function but arrays and axes. If that gives a
    value a class, as those of sigmoids do, the entry takes `reduce`, too: "mean" or "sum"
    over the classes, and its probabilities are sigmoids. Raises `InputError` if optax has
    no such function.
    """
    function = getattr(optax.losses, name.removeprefix(PREFIX), None)
    taken = dict(inspect.signature(function).parameters) if callable(function) else {}
    if not function or [*taken][:2] != ["logits", "labels"]:
        raise InputError(
            f"loss.name={name!r} is no loss of optax with (logits, labels); try"
            " 'optax.sigmoid_focal_loss'"
        )
    for key in ("logits", "labels", "axis", "where"):
        taken.pop(key, None)
    batch = np.full((3, 5), 0.2, np.float32)
    is_by_class = "sigmoid" in name

    def make(reduce: str = "mean", **options: Any) -> Loss:
        reduced = lookup({"mean": jnp.mean, "sum": jnp.sum}, reduce, f"reduce of {name}")
        try:
            shape = jax.eval_shape(lambda x: function(x, x, **options), batch).shape
        except Exception as error:
            raise ValueError(
                f"it takes no distributions for labels ({type(error).__name__}:"
                f" {first_line(error)})"
            ) from None
        if shape != (batch.shape if is_by_class else batch.shape[:1]):
            raise ValueError(
                f"it gives {list(shape)} for logits {list(batch.shape)}, and must give a"
                " number an example, or one a class if it is of sigmoids"
            )

        def apply(logits: jax.Array, targets: jax.Array) -> jax.Array:
            found: jax.Array = function(logits, targets, **options)
            return reduced(found, -1) if is_by_class else found

        vars(apply)["link"] = "sigmoid" if is_by_class else "softmax"
        return apply

    reduce = inspect.signature(make).parameters["reduce"]
    named = [*taken.values(), reduce] if is_by_class else [*taken.values()]
    vars(make)["__signature__"] = _keywords(named)
    return make


def _keywords(parameters: list[inspect.Parameter]) -> inspect.Signature:
    """Returns a signature of keywords, without annotations of optax's own types."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature([each.replace(kind=keyword) for each in parameters])


def _decays(decay: optax.GradientTransformation) -> bool:
    """Returns whether a decay changes updates of 0."""
    one = {"head": {"kernel": jnp.ones((2, 2))}}
    zero = jax.tree.map(jnp.zeros_like, one)
    updates, _ = decay.update(zero, decay.init(one), one)
    return any(np.any(leaf) for leaf in jax.tree.leaves(updates))


def _check_rate(factory: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raises ValueError unless three steps move by the rate times those at a rate of 1."""
    rng, rates = np.random.default_rng(0), jnp.asarray(_RATES)
    like = {"kernel": (4, 3), "bias": (3,)}
    params = {name: jnp.float32(rng.standard_normal(s)) for name, s in like.items()}
    try:
        theirs = factory(learning_rate=lambda count: rates[count], **options)
        ours = factory(learning_rate=1.0, **options)
        states = theirs.init(params), ours.init(params)
        for rate in _RATES:
            grads = {n: jnp.float32(rng.standard_normal(s)) for n, s in like.items()}
            expected, there = theirs.update(grads, states[0], params)
            found, here = ours.update(grads, states[1], params)
            states = there, here
            for name in like:
                close = np.allclose(rate * found[name], expected[name], 1e-4, 1e-6)
                if not close or not np.isfinite(expected[name]).all():
                    raise ValueError("its updates are not proportional to learning_rate")
            params = optax.apply_updates(params, expected)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"it cannot be used under a schedule ({type(error).__name__}:"
            f" {first_line(error)})"
        ) from None
