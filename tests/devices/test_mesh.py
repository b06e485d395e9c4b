"""Devices, shardings, and which rows of a batch a host owns."""

import os

import jax
import numpy as np
import pytest

from jaxcls.devices import mesh
from jaxcls.errors import InputError


@pytest.mark.parametrize(("asked", "size"), [(0, 8), (1, 1), (3, 3), (8, 8)])
def test_a_mesh_has_the_first_devices_along_one_axis(asked, size):
    made = mesh.make(asked)
    assert made.axis_names == ("data",)
    assert list(made.devices) == jax.devices()[:size]


def test_too_many_devices_are_refused_with_how_many_there_are():
    says = "mesh.devices=9, and host 0 has 8 cpu devices; give at most that, or 0"
    with pytest.raises(InputError, match=says):
        mesh.make(9)


def test_put_spreads_contiguous_rows_over_the_devices():
    batch = {
        "image": np.arange(16 * 3, dtype=np.uint8).reshape(16, 3),
        "label": np.arange(16, dtype=np.int32),
    }
    on_mesh = mesh.put(mesh.make(4), batch)
    for name, array in on_mesh.items():
        np.testing.assert_array_equal(np.asarray(array), batch[name], strict=True)
    for shard in on_mesh["label"].addressable_shards:
        first = 4 * shard.device.id
        assert np.asarray(shard.data).tolist() == list(range(first, first + 4))


def test_a_replicated_array_is_whole_on_every_device():
    array = jax.device_put(np.arange(5), mesh.replicated(mesh.make(0)))
    shards = [np.asarray(shard.data).tolist() for shard in array.addressable_shards]
    assert shards == [[0, 1, 2, 3, 4]] * 8


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_hosts_own_contiguous_rows_that_make_up_the_batch(hosts, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    owned = []
    for host in range(hosts):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        owned += list(range(16))[mesh.host_rows(16)]
    assert owned == list(range(16))


@pytest.mark.parametrize(
    ("batch_size", "remedy"), [(12, "8 or 16"), (5, "8"), (1001, "1000 or 1008")]
)
def test_a_batch_that_does_not_spread_evenly_is_refused(batch_size, remedy):
    said = f"batch_size={batch_size} does not divide over 8 devices; try {remedy}"
    with pytest.raises(InputError, match=f"^{said}$"):
        mesh.check_divides(mesh.make(8), batch_size, "batch_size")
    mesh.check_divides(mesh.make(8), 24, "batch_size")


def test_round_up_gives_the_next_multiple_of_the_devices():
    found = [mesh.round_up(n, mesh.make(of)) for n, of in ((1, 8), (8, 8), (9, 8), (7, 1))]
    assert found == [8, 8, 16, 7]


def test_what_is_asked_is_given_once_the_next_is_asked_too_and_in_order():
    asked = []

    def asking():
        for k in range(3):
            asked.append(k)
            yield k

    assert [(k, list(asked)) for k in mesh.one_behind(asking())] == [
        (0, [0, 1]),
        (1, [0, 1, 2]),
        (2, [0, 1, 2]),
    ]
    assert list(mesh.one_behind([])) == []


def test_cpus_are_no_accelerator_and_share_the_hosts_memory():
    assert not mesh.is_accelerator(mesh.make(2))
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [mesh.memory_limit(mesh.make(n)) for n in (1, 8)]
    if limits[0] is not None:  # Known on Linux only.
        assert 0 < limits[0] <= whole
        assert limits[1] * 8 == pytest.approx(limits[0], rel=0.2)
