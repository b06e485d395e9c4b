"""A trace as a table: what shares are, and what each op is called."""

import re

import jax
import jax.numpy as jnp
import pytest

from benchmarks import ops
from jaxcls.training import profiling


def convolved(x, k, w):
    y = jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(y).reshape(x.shape[0], -1) @ w


@pytest.mark.slow
def test_a_trace_names_what_ran(tmp_path):
    given = jnp.ones((4, 8, 8, 3)), jnp.ones((3, 3, 3, 8)), jnp.ones((512, 5))
    program = jax.jit(convolved).lower(*given).compile()
    jax.block_until_ready(program(*given))
    with profiling.trace(tmp_path):
        for _ in range(2):
            jax.block_until_ready(program(*given))
        jax.block_until_ready(jax.jit(jnp.sort)(given[2]))  # Another program.
    found = ops.read(tmp_path, program.as_text(), 2)
    assert {"convolution", "matrix product"} <= {op.kind for op, _ in found.spent}
    assert sum(found.by("kind").values()) == pytest.approx(1)
    assert min(ms for _, ms in found.spent) > 0
    assert not any("sort" in op.where for op, _ in found.spent)
    head, *lines = ops.table(found, top=3).splitlines()
    assert re.fullmatch(r"2 steps of [\d.,]+ ms, as traced", head)
    assert len(lines) == 3 + min(3, len(found.spent))
    assert "conv_general_dilated" in ops.table(found)


def test_a_trace_of_another_program_is_none(tmp_path):
    other = jax.jit(jnp.sort).lower(jnp.ones(4)).compile().as_text()
    assert ops.read(tmp_path, other, 1) is None


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(0, 10), (20, 25)], [10, 5]),
        ([(0, 10), (0, 10)], [5, 5]),
        ([(0, 10), (2, 4), (2, 8)], [2 + 2 / 3 + 4 / 2 + 2, 2 / 3, 2 / 3 + 4 / 2]),
        ([(3, 3)], [0]),
    ],
)
def test_what_runs_at_once_shares_the_time(spans, expected):
    made = [ops._Span(*span, "op") for span in spans]
    assert ops._shares(made) == pytest.approx(expected)
