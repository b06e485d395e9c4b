"""The mesh of devices, shardings, and transfers between hosts and devices.

Each device has some examples of a batch, yet BatchNorm and means cover the global batch. A
mesh of the axis "data" replicates the state. A mesh of the axes "data" and "fsdp" shards
each large array of the state along "fsdp".
"""

import importlib.util
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcls.errors import InputError

Item = TypeVar("Item")
# The least number of elements of a sharded array. A smaller array, such as a bias, is not
# worth the messages and is replicated.
LEAST = 2**14


def make(
    devices_per_host: int = 0, fsdp: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Returns a mesh over the first `devices_per_host` devices of every host; 0: over all.

    fsdp: the number of consecutive devices that hold the state together. devices: the
    candidates, by default all devices. Raises `InputError` if a host has too few devices or
    fsdp does not divide their number.
    """
    chosen = []
    found = jax.devices() if devices is None else devices
    for host in sorted({device.process_index for device in found}):
        local = [d for d in found if d.process_index == host]
        if devices_per_host > len(local):
            raise InputError(
                f"mesh.devices={devices_per_host}, and host {host} has {len(local)}"
                f" {local[0].platform} devices; give at most that, or 0 for all"
            )
        chosen += local[: devices_per_host or len(local)]
    if fsdp == 1:
        return Mesh(np.array(chosen), ("data",), axis_types=(AxisType.Auto,))
    n = len(chosen)
    if n % fsdp:
        fitting = ", ".join(str(k) for k in range(1, n + 1) if n % k == 0)
        raise InputError(
            f"mesh.fsdp={fsdp} does not divide the devices of the run, {n}; give one of"
            f" {fitting}"
        )
    grid = np.array(chosen).reshape(-1, fsdp)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def fsdp_of(mesh: Mesh) -> int:
    """Returns the number of devices that hold the state together; 1: replicated."""
    return mesh.shape.get("fsdp", 1)


def pretend(devices: int) -> None:
    """Makes jax see only CPU devices, `devices` of them, to compile for.

    Call it before any device starts.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def prefer_same_bits() -> None:
    """Asks XLA for deterministic GPU kernels, if a GPU plug-in is installed.

    Call it before any device starts. XLA_FLAGS that set the flag stay as they are. Kernels
    of CPU and TPU are deterministic without a flag.
    """
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
    flags = os.environ.get("XLA_FLAGS", "")
    has_gpus = any(importlib.util.find_spec(name) for name in plugins)
    if has_gpus and "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: the first axis over all devices."""
    axes = mesh.axis_names
    return NamedSharding(mesh, PartitionSpec(axes if len(axes) > 1 else axes[0]))


def by_step(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of stacked batches [K, B, ...]: each as `by_example`."""
    return NamedSharding(mesh, PartitionSpec(None, *by_example(mesh).spec))


def of_state(mesh: Mesh, shapes: Any) -> Any:
    """Returns the sharding of each array of a state, or of a subtree with the same names.

    Shards the longest axis that "fsdp" divides, the last of equal axes. Replicates small
    arrays, arrays without such an axis, and "batch_stats".
    """

    n = fsdp_of(mesh)

    def one(path: tuple[Any, ...], like: Any) -> NamedSharding:
        names = {getattr(key, "name", getattr(key, "key", "")) for key in path}
        is_whole = n == 1 or "batch_stats" in names or math.prod(like.shape) < LEAST
        fitting = [axis for axis, size in enumerate(like.shape) if size % n == 0]
        if is_whole or not fitting:
            return replicated(mesh)
        axis = max(fitting, key=lambda axis: (like.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree_util.tree_map_with_path(one, shapes)


def gathered(mesh: Mesh, params: Any) -> Any:
    """Gathers sharded params on every device, in traced code.

    Their gradients are sharded again. Without it, XLA may shard the model instead and
    gather activations.
    """
    everywhere = replicated(mesh)

    def one(array: jax.Array, its: NamedSharding) -> jax.Array:
        @jax.custom_vjp
        def whole(array: jax.Array) -> jax.Array:
            return jax.lax.with_sharding_constraint(array, everywhere)

        whole.defvjp(
            lambda array: (whole(array), None),
            lambda _, grad: (jax.lax.with_sharding_constraint(grad, its),),
        )
        return array if its.is_fully_replicated else whole(array)

    return jax.tree.map(one, params, of_state(mesh, params))


def on_one_device(like: Any) -> Any:
    """Returns the shapes and dtypes of the shard that one device holds of each array."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype), like
    )


def put(mesh: Mesh, arrays: Any) -> Any:
    """Puts a tree of this host's rows [b, ...] on the mesh, as global arrays [B, ...]."""
    return jax.make_array_from_process_local_data(by_example(mesh), arrays)


def put_everywhere(mesh: Mesh, arrays: Any) -> Any:
    """Puts a tree of arrays, equal on every host, on every device of the mesh."""
    return jax.make_array_from_process_local_data(replicated(mesh), arrays)


def one_behind(asked: Iterable[Item]) -> Iterator[Item]:
    """Yields the same items, each after the next item is taken.

    For outputs of a device: it starts the next program before the host reads a result.
    """
    before: list[Item] = []
    for each in asked:
        yield from before
        before = [each]
    yield from before


def flags(mesh: Mesh, flag: bool) -> Any:
    """Returns each process's `flag`, bool [devices] on the mesh; () for one process.

    A program that reduces it tells all processes the same value at the same step.
    """
    if jax.process_count() == 1:
        return ()
    return put(mesh, np.full(len(mesh.local_devices), flag))


def host_rows(batch_size: int) -> slice:
    """Returns this host's slice of the rows of a global batch.

    The slices are contiguous, so the global batch is the same on any number of hosts.
    """
    local = batch_size // jax.process_count()
    return slice(jax.process_index() * local, (jax.process_index() + 1) * local)


def check_divides(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raises `InputError` unless a batch divides evenly over the devices."""
    n = mesh.size
    if batch_size % n:
        below, above = batch_size // n * n, -(-batch_size // n) * n
        fits = f"{below} or {above}" if below else f"{above}"
        raise InputError(f"{key}={batch_size} does not divide over {n} devices; try {fits}")


def round_up(batch_size: int, mesh: Mesh) -> int:
    """Returns the least multiple of the device count that is at least `batch_size`."""
    return -(-batch_size // mesh.size) * mesh.size


def is_accelerator(mesh: Mesh) -> bool:
    """Returns whether the devices are anything but CPUs."""
    platforms: set[Any] = {device.platform for device in mesh.devices.flat}
    return platforms != {"cpu"}


def memory_limit(mesh: Mesh) -> int | None:
    """Returns the bytes that one device may hold, or None if unknown.

    CPU devices divide the host's available memory equally.
    """
    device = mesh.local_devices[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats.get("bytes_limit")
    try:
        text = pathlib.Path("/proc/meminfo").read_text()
    except OSError:
        return None
    available = re.findall(r"MemAvailable: +(\d+) kB", text)
    return int(available[0]) * 1024 // len(mesh.local_devices)
