"""Optimizers of optax by their own names: ``optim.name="optax.adabelief(b1=0.95)"``.

Any factory with a `learning_rate` serves whose updates are proportional to it, which is
checked on three steps: the rate of a run is the schedule's, and is applied around the
optimizer.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcls.errors import InputError, first_line

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
    named = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in options]
    vars(make)["__signature__"] = inspect.Signature([*named, ours])
    return make


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
