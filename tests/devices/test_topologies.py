"""Slices that are described: what is asked of libtpu, and a step compiled by it."""

import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies as jax_topologies

from jaxcls import commands, experiment
from jaxcls.commands import dry_run
from jaxcls.devices import mesh, topologies
from jaxcls.errors import InputError

HAS_LIBTPU = bool(importlib.util.find_spec("libtpu") or "TPU_LIBRARY_PATH" in os.environ)


class Device:
    """A TPU that is described only."""

    platform, device_kind = "tpu", "TPU v5 lite"

    def __init__(self, number):
        self.id, self.process_index = number, number // 4


@pytest.fixture
def asked(monkeypatch):
    """What libtpu is asked for; it describes eight devices on two hosts."""
    calls = []

    def describe(name, platform, **options):
        calls.append((name, platform, options))
        if name.endswith("5x5"):
            raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: not divisible\nmore")
        return jax_topologies.TopologyDescription([Device(i) for i in range(8)])

    monkeypatch.setattr(jax_topologies, "get_topology_desc", describe)
    monkeypatch.setenv("TPU_LIBRARY_PATH", "libtpu.so")
    for name in topologies._ALONE:  # Set for good where they are not.
        monkeypatch.setenv(name, "")
    return calls


def test_a_slice_is_told_from_a_number():
    texts = ["v5e:4x4", "v5e", "x:1", "8", ""]
    assert [*map(topologies.is_slice, texts)] == [True, True, True, False, False]


def test_the_slice_is_asked_for_with_hosts_of_at_most_two_by_two(asked):
    devices, room = topologies.described("v5e:4x4", "--devices")
    assert len(devices) == 8
    assert room == 15.75 * 2**30
    for text in ("v5e:1x4", "v4:2x4x4"):
        topologies.described(text, "--devices")
    bounds = "chips_per_host_bounds"
    assert asked == [
        ("v5e:4x4", "tpu", {bounds: (2, 2, 1)}),
        ("v5e:1x4", "tpu", {bounds: (1, 2, 1)}),
        ("v4:2x4x4", "tpu", {bounds: (2, 2, 1), "chip_config_name": "megacore"}),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v5:4x4", "unknown TPU in --devices=v5:4x4 'v5' (did you mean 'v5p'?); known: "),
        ("v5e", "must say how many chips there are along each of 2 axes; try --devices=v"),
        ("v5e:4", "along each of 2 axes; try --devices=v5e:2x2"),
        ("v5p:4x4", "along each of 3 axes; try --devices=v5p:2x2x1"),
        ("v5e:0x4", "along each of 2 axes"),
        ("v5e:4x4x", "along each of 2 axes"),
        ("v5e:5x5", "is no slice that libtpu describes (INVALID_ARGUMENT: not divisible);"),
    ],
)
def test_what_is_no_slice_is_answered_with_one(asked, text, says):
    with pytest.raises(InputError, match=re.escape(says)):
        topologies.described(text, "--devices")


def test_without_libtpu_the_command_says_what_to_install(monkeypatch):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    says = (
        r"^--devices=v5e:4x4 needs the TPU's compiler, libtpu; pip install 'jaxcls\[tpu\]'"
    )
    given = ["train", "--config=configs/digits.py", "--dry_run", "--devices=v5e:4x4"]
    with pytest.raises(InputError, match=says):
        commands.main(given)


def test_a_mesh_of_described_devices_computes_in_bfloat16(asked, tiny):
    devices, _ = topologies.described("v5e:4x4", "--devices")
    config = tiny(**{"mesh.devices": 0, "mesh.fsdp": 2})
    exp = experiment.build(config, devices=devices)
    assert exp.recipe.dtype == jnp.bfloat16
    assert exp.mesh.devices.tolist() == [devices[i : i + 2] for i in range(0, 8, 2)]
    assert list(mesh.make(3, devices=devices).devices) == [*devices[:3], *devices[4:7]]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu, 700 MB, is not installed")
def test_a_step_is_compiled_for_a_slice_that_is_not_there(tiny):
    devices, room = topologies.described("v5e:2x2", "--devices")
    config = tiny(**{"mesh.devices": 0, "mesh.fsdp": 4})
    exp = experiment.build(config, devices=devices)
    said = dry_run.describe(exp, True, room)
    row = re.search(r"compiled: +(.*)", said)[1]
    assert "of 15.75 GiB on each of 4 TPU v5 lite device(s)" in row
    assert "bfloat16 compute" in said
