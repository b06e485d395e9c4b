"""What a dry run says of memory, by counting."""

import re

import jax
import pytest

from jaxcls import dry_run, experiment


def memory(exp):
    """(state and gradients, activations) in MiB, as the dry run says."""
    found = re.search(
        r"state and gradients (\S+) MiB, activations (\S+) MiB", dry_run.describe(exp)
    )
    return float(found[1]), float(found[2])


def test_pieces_of_a_batch_keep_less_for_one_more_copy_of_the_params(tiny):
    model = {"model.name": "cnn(widths=(256,), dense=2048)", "batch_size": 512}
    whole = experiment.build(tiny(**model))
    pieces = experiment.build(tiny(**model, **{"optim.accumulate": 4}))
    params = sum(x.size * 4 for x in jax.tree.leaves(whole.state_shapes.params)) / 2**20
    assert params > 10
    (state, kept), (more, less) = memory(whole), memory(pieces)
    assert more - state == pytest.approx(params, abs=0.11)
    assert less == pytest.approx(kept / 4, abs=0.11)
    climbing = experiment.build(tiny(**model, **{"optim.sam": 0.05}))
    assert memory(climbing) == pytest.approx((more, kept), abs=0.11)
