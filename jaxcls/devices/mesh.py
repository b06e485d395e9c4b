"""Devices, shardings and hosts.

Examples are spread over all devices, so BatchNorm and means are over the global batch by
construction. A mesh of one axis, "data", has the whole state on every device; one of two,
"data" and "fsdp", has each large array of it in parts, along "fsdp".
"""

import importlib.util
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcls.errors import InputError

Item = TypeVar("Item")
# Elements of an array that is worth its messages when it is in parts; a smaller one, such
# as a bias, is whole everywhere.
LEAST = 2**14


def make(
    devices_per_host: int = 0, fsdp: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over the first `devices_per_host` devices of every host; 0: over all.

    fsdp: how many of them, one after the other, hold the state together. devices: to
    choose from; those that there are if not given.
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
        fitting = [str(k) for k in range(1, n + 1) if n % k == 0]
        raise InputError(
            f"mesh.fsdp={fsdp} does not divide the {n} devices of the run; give"
            f" {', '.join(fitting[:-1])} or {fitting[-1]}"
            if n > 1
            else f"mesh.fsdp={fsdp} needs as many devices, and the run has 1; give 1"
        )
    grid = np.array(chosen).reshape(-1, fsdp)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def fsdp_of(mesh: Mesh) -> int:
    """How many devices hold the state together; 1: it is whole on each."""
    return mesh.shape.get("fsdp", 1)


def pretend(devices: int) -> None:
    """Have so many CPU devices, and no others, to compile for; before any device starts."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


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
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over all devices."""
    axes = mesh.axis_names
    return NamedSharding(mesh, PartitionSpec(axes if len(axes) > 1 else axes[0]))


def by_step(mesh: Mesh) -> NamedSharding:
    """The sharding of several batches [K, B]: each as `by_example`."""
    return NamedSharding(mesh, PartitionSpec(None, *by_example(mesh).spec))


def of_state(mesh: Mesh, shapes: Any) -> Any:
    """The sharding of each array of a state, or of any part of one with the same names.

    In parts along the longest axis that "fsdp" divides, the last of equal ones; whole
    where there is none, or the array is small, or statistics ("batch_stats").
    """

    def one(path: tuple[Any, ...], like: Any) -> NamedSharding:
        names = {getattr(key, "name", getattr(key, "key", "")) for key in path}
        axis = None if "batch_stats" in names else _axis_to_split(like.shape, n)
        if axis is None:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    n = fsdp_of(mesh)
    return jax.tree_util.tree_map_with_path(one, shapes)


def _axis_to_split(shape: tuple[int, ...], n: int) -> int | None:
    """The longest axis that `n` divides, the last of equal ones; None: not in parts."""
    fitting = [axis for axis, size in enumerate(shape) if size % n == 0]
    if n == 1 or math.prod(shape) < LEAST or not fitting:
        return None
    return max(fitting, key=lambda axis: (shape[axis], axis))


def gathered(mesh: Mesh, params: Any) -> Any:
    """Params that are in parts made whole on every device, for what is traced.

    Their gradients are in parts again. Without it XLA may split the model instead, and
    gather activations.
    """
    everywhere = replicated(mesh)

    def one(array: jax.Array, its: NamedSharding) -> jax.Array:
        if its.is_fully_replicated:
            return array

        @jax.custom_vjp
        def whole(array: jax.Array) -> jax.Array:
            return jax.lax.with_sharding_constraint(array, everywhere)

        whole.defvjp(
            lambda array: (whole(array), None),
            lambda _, grad: (jax.lax.with_sharding_constraint(grad, its),),
        )
        return whole(array)

    return jax.tree.map(one, params, of_state(mesh, params))


def on_one_device(like: Any) -> Any:
    """The shapes of what one device holds of arrays that are like these, sharding too."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype), like
    )


def put(mesh: Mesh, arrays: Any) -> Any:
    """A tree of this host's rows [b, ...] -> the tree of all rows [B, ...] on the mesh."""
    sharding = by_example(mesh)
    hosts = jax.process_count()

    def one(local: np.ndarray) -> jax.Array:
        shape = (local.shape[0] * hosts, *local.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local, shape)

    return jax.tree.map(one, arrays)


def put_everywhere(mesh: Mesh, arrays: Any) -> Any:
    """A tree of arrays, which every host gives whole, on every device of the mesh."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x, x.shape), arrays
    )


def one_behind(asked: Iterable[Item]) -> Iterator[Item]:
    """The same items, each once the next was taken.

    Of what is asked of a device: it never waits until we have looked at its answers.
    """
    before: list[Item] = []
    for each in asked:
        yield from before
        before = [each]
    yield from before


def flags(mesh: Mesh, flag: bool) -> Any:
    """Each process's `flag`, bool [devices], where there are several; () for one alone.

    A program that reduces it tells all of them the same, at the same step.
    """
    if jax.process_count() == 1:
        return ()
    return put(mesh, np.full(len(mesh.local_devices), flag))


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
