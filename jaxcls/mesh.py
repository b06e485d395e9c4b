"""Devices, shardings and hosts.

One mesh axis, "data": examples are spread over it and the state is on every device, so
BatchNorm and means are over the global batch by construction.
"""

import importlib.util
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcls.errors import InputError

Item = TypeVar("Item")


def make(devices_per_host: int = 0) -> Mesh:
    """A mesh over the first `devices_per_host` devices of every host; 0: over all."""
    chosen = []
    for host in range(jax.process_count()):
        local = [d for d in jax.devices() if d.process_index == host]
        if devices_per_host > len(local):
            raise InputError(
                f"mesh.devices={devices_per_host}, and host {host} has {len(local)}"
                f" {local[0].platform} devices; give at most that, or 0 for all"
            )
        chosen += local[: devices_per_host or len(local)]
    return Mesh(np.array(chosen), ("data",), axis_types=(AxisType.Auto,))


def prefer_same_bits() -> None:
    """Where there may be GPUs, ask XLA for kernels that give the same bits each time.

    Before any device starts; XLA_FLAGS that say otherwise are left alone. On CPU and TPU
    XLA has no others.
    """
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
    flags = os.environ.get("XLA_FLAGS", "")
    has_gpus = any(importlib.util.find_spec(name) for name in plugins)
    if has_gpus and "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of the state: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This host's rows of every array [b, ...] -> global arrays [B, ...] on the mesh."""
    sharding = by_example(mesh)
    hosts = jax.process_count()

    def one(local: np.ndarray) -> jax.Array:
        shape = (local.shape[0] * hosts, *local.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local, shape)

    return {name: one(array) for name, array in batch.items()}


def put_everywhere(mesh: Mesh, arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The same arrays, which every host gives whole, on every device of the mesh."""
    sharding = replicated(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array, array.shape)
        for name, array in arrays.items()
    }


def one_behind(asked: Iterable[Item]) -> Iterator[Item]:
    """The same items, each once the next was taken.

    Of what is asked of a device: it never waits until we have looked at its answers.
    """
    before: list[Item] = []
    for each in asked:
        yield from before
        before = [each]
    yield from before


def with_flag(mesh: Mesh, batch: dict[str, jax.Array], flag: bool) -> dict[str, jax.Array]:
    """`batch` and, where there are several processes, each one's `flag` as "asked" [N].

    A step that reduces it tells all of them the same, at the same step.
    """
    if jax.process_count() == 1:
        return batch
    flags = np.full(len(mesh.local_devices), flag)
    return batch | put(mesh, {"asked": flags})


def host_rows(batch_size: int) -> slice:
    """This host's contiguous rows of a global batch.

    Contiguous, not strided: the global batch is then the same on any number of hosts.
    """
    local = batch_size // jax.process_count()
    return slice(jax.process_index() * local, (jax.process_index() + 1) * local)


def check_divides(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raise `InputError` unless a batch spreads evenly over the devices."""
    n = mesh.size
    if batch_size % n:
        below, above = batch_size // n * n, -(-batch_size // n) * n
        fits = f"{below} or {above}" if below else f"{above}"
        raise InputError(f"{key}={batch_size} does not divide over {n} devices; try {fits}")


def round_up(batch_size: int, mesh: Mesh) -> int:
    """The least multiple of the device count that is at least `batch_size`."""
    return -(-batch_size // mesh.size) * mesh.size


def is_accelerator(mesh: Mesh) -> bool:
    """Whether the devices are anything but CPUs."""
    platforms: set[Any] = {device.platform for device in mesh.devices.flat}
    return platforms != {"cpu"}


def memory_limit(mesh: Mesh) -> int | None:
    """Bytes that one device may hold, or None where it is not known.

    CPU devices share the host's memory, so each has its part of what is available.
    """
    device = mesh.local_devices[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats.get("bytes_limit")
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":") for line in file)
    except OSError:
        return None
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return available // len(mesh.local_devices)
