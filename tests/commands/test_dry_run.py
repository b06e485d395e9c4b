"""What a dry run says of memory, by counting."""

import itertools
import re
import types

import jax
import pytest

from jaxcls import experiment
from jaxcls.commands import dry_run
from jaxcls.config.rules import PROBE


def memory(exp):
    """(state and gradients, activations) in MiB, as the dry run says."""
    found = re.search(
        r"state and gradients (\S+) MiB, activations (\S+) MiB", dry_run.describe(exp)
    )
    return float(found[1]), float(found[2])


@pytest.mark.slow
def test_pieces_of_a_batch_keep_less_for_one_more_copy_of_the_params(tiny):
    model = {"model.name": "cnn(widths=(256,), dense=2048)", "batch_size": 512}
    whole = experiment.build(tiny(**model))
    pieces = experiment.build(tiny(**model, **{"optim.accumulate": 4}))
    params = (
        sum(x.size * 4 for x in jax.tree.leaves(whole.programs.state_shapes.params)) / 2**20
    )
    assert params > 10
    (state, kept), (more, less) = memory(whole), memory(pieces)
    assert more - state == pytest.approx(params, abs=0.11)
    assert less == pytest.approx(kept / 4, abs=0.11)
    climbing = experiment.build(tiny(**model, **{"optim.sam": 0.05}))
    assert memory(climbing) == pytest.approx((more, kept), abs=0.11)


@pytest.mark.slow
def test_parts_of_a_state_are_counted_as_what_a_device_holds(tiny, monkeypatch):
    model = {"model.name": "cnn(widths=(256,), dense=2048)", "batch_size": 512}
    exps = [
        experiment.build(tiny(**model, **{"mesh.devices": 8, "mesh.fsdp": n}))
        for n in (1, 4)
    ]
    (whole, kept), (parts, same) = map(memory, exps)
    assert parts == pytest.approx(whole / 4, rel=0.02)
    assert kept == same


@pytest.mark.slow
def test_what_is_computed_anew_is_not_counted_as_kept(tiny):
    model = {"model.name": "vit_ti_32", "augment": "", "batch_size": 64}
    ops = {f"data.{name}_ops": "decode | resize(64)" for name in ("train", "eval")}
    exps = [
        experiment.build(tiny(**model, **ops, **{"model.remat": kind}))
        for kind in ("", "blocks")
    ]
    (state, kept), (same, less) = map(memory, exps)
    assert state == same
    assert less < kept / 4


def test_a_step_is_timed_after_one_that_warms_up(tiny, monkeypatch):
    exp = experiment.build(tiny(length="600 steps"))
    reads = iter(itertools.accumulate([0, 90, 1, 2, 1, 30, 1, 4]))  # Steps: 90, 2, 30, 4.
    monkeypatch.setattr(dry_run, "time", types.SimpleNamespace(perf_counter=reads.__next__))
    found = dry_run.describe(exp, timed=True)
    assert "time:          4 s a step (median of 3, without input)" in found
    assert "about 40:00 for the run's 600\n" in found
    monkeypatch.setattr(dry_run.mesh, "memory_limit", lambda mesh: 2**10)
    assert "time:          not measured: it needs " in dry_run.describe(exp, timed=True)


def test_a_probe_is_timed_by_its_images(tiny, monkeypatch):
    config = tiny(**PROBE, **{"probe.penalties": "1e-3", "batch_size": 512})
    config.data.train_ops = config.data.eval_ops
    exp = experiment.build(config)
    seconds = itertools.count()
    monkeypatch.setattr(
        dry_run, "time", types.SimpleNamespace(perf_counter=seconds.__next__)
    )
    found = dry_run.describe(exp, timed=True)
    # 1,437 images of train and eval: 3 batches.
    assert "time:          1 s a step" in found
    assert "about 0:03 for the features' 3\n" in found
    assert "memory:        at most " in found


@pytest.mark.slow
def test_the_step_is_compiled_for_devices_that_are_not_there(command):
    arguments = (
        "--config=configs/digits.py", "--dry_run", "--config.batch_size=512",
        "--config.model.name=cnn(dense=512)",
    )  # fmt: skip
    found = {}
    for devices, fsdp in (("0", 1), ("64", 1), ("64", 16)):
        done = command(
            "train", *arguments, f"--devices={devices}", f"--config.mesh.fsdp={fsdp}"
        )
        assert done.returncode == 0, done.stderr
        row = re.search(r"compiled: +(.*)", done.stdout)[1]
        sizes = re.findall(r"(\S+) ([KMG]iB)", row)
        assert f"on each of {devices if devices != '0' else 1} cpu device(s)" in row
        assert "an accelerator's temporaries differ" in row
        assert ("s a step (median of 3" in done.stdout) == (devices == "0")
        found[devices, fsdp] = [float(size) for size, _ in sizes]
    # Of the whole, arguments, the state among them, temporaries and outputs.
    assert found["64", 1][2] == found["0", 1][2]
    assert found["64", 16][2] < found["64", 1][2] / 10
    assert found["64", 1][3] < found["0", 1][3]
    done = command("train", *arguments, "--devices=7")
    assert done.returncode == 2
    assert "batch_size=512 does not divide over 7 devices" in done.stderr
