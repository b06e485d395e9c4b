"""A trace as a table: what shares are, and that a run that is traced is the same run."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxcls import experiment, profiling, train


def convolved(x, k, w):
    y = jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(y).reshape(x.shape[0], -1) @ w


def test_a_trace_names_what_ran(tmp_path):
    given = jnp.ones((4, 8, 8, 3)), jnp.ones((3, 3, 3, 8)), jnp.ones((512, 5))
    program = jax.jit(convolved).lower(*given).compile()
    jax.block_until_ready(program(*given))
    with profiling.trace(tmp_path):
        for _ in range(2):
            jax.block_until_ready(program(*given))
        jax.block_until_ready(jax.jit(jnp.sort)(given[2]))  # Another program.
    found = profiling.read(tmp_path, program.as_text(), 2)
    assert {"convolution", "matrix product"} <= {op.kind for op, _ in found.spent}
    assert sum(found.by("kind").values()) == pytest.approx(1)
    assert min(ms for _, ms in found.spent) > 0
    assert not any("sort" in op.where for op, _ in found.spent)
    head, *lines = profiling.table(found, top=3).splitlines()
    assert re.fullmatch(r"2 steps of [\d.,]+ ms, as traced", head)
    assert len(lines) == 3 + min(3, len(found.spent))
    assert "conv_general_dilated" in profiling.table(found)


def test_a_trace_of_another_program_is_none(tmp_path):
    other = jax.jit(jnp.sort).lower(jnp.ones(4)).compile().as_text()
    assert profiling.read(tmp_path, other, 1) is None


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
    made = [profiling._Span(*span, "op") for span in spans]
    assert profiling._shares(made) == pytest.approx(expected)


def said(folder):
    return [(folder / name).read_bytes() for name in ("metrics.jsonl", "digests.jsonl")]


# The last: the run ends before as many steps were traced.
@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 100])
def test_a_run_that_is_traced_is_the_same_run(tiny, tmp_path, capsys, steps):
    train.run(experiment.build(tiny()), str(tmp_path / "plain"))
    exp = experiment.build(tiny(**{"log.profile": steps}))
    train.run(exp, str(tmp_path / "traced"))
    assert said(tmp_path / "traced") == said(tmp_path / "plain")
    folder = tmp_path / "traced" / "profile"
    assert f"profile: {min(steps, 9)} steps of " in capsys.readouterr().out
    lines = (folder / "ops.txt").read_text().splitlines()
    assert any("convolution" in line and "backward" in line for line in lines)
    assert list(folder.glob("plugins/profile/*/*.xplane.pb"))
    assert not (tmp_path / "plain" / "profile").exists()
