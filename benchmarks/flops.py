"""How much arithmetic a forward pass is: what is known from shapes alone."""

import math
from collections.abc import Callable
from typing import Any

import jax


def multiply_adds(forward: Callable[..., Any], *shapes: Any) -> int:
    """Multiply-adds in the convolutions and matrix products of ``forward(*shapes)``.

    A multiplication with its addition counts once, as papers count "FLOPs"; so does one
    with the zeros of padding. All else (normalisation, activations, pooling) is left out.
    A scan counts as often as it runs, a cond as its largest branch, a while loop, whose
    turns are not known, as one turn. Nothing is computed.
    """
    return _of_jaxpr(jax.make_jaxpr(forward)(*shapes))


def _of_jaxpr(jaxpr: Any) -> int:
    """The same, of a jaxpr, open or closed."""
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    """The same, of one equation and of what it calls."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return _results(equation) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        # Its features of the input are those of one group already.
        filters = params["dimension_numbers"].rhs_spec[0]
        return _results(equation) * math.prod(kernel) // kernel[filters]
    inner = [_of_jaxpr(each) for each in _called(params)]
    if name == "cond":
        return max(inner)
    if name == "scan":
        return params["length"] * sum(inner)
    return sum(inner)


def _results(equation: Any) -> int:
    """How many numbers an equation gives."""
    return math.prod(equation.outvars[0].aval.shape)


def _called(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among the parameters of an equation."""

    def is_jaxpr(value: Any) -> bool:
        return hasattr(value, "eqns")

    return [each for each in jax.tree.leaves(params, is_leaf=is_jaxpr) if is_jaxpr(each)]
