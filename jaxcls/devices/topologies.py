"""Described TPU slices, to compile programs for without a TPU."""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax

from jaxcls.errors import InputError, first_line, lookup


class Chip(NamedTuple):
    """A kind of TPU chip.

    slice: a small slice. room: the GiB that a program may use on a device; XLA's compiler
    (libtpu 0.0.42) refuses more. options: describe the devices as a run sees them.
    """

    slice: str
    room: float
    options: dict[str, str]


CHIPS = {
    "v2": Chip("2x2", 7.48, {}),
    "v3": Chip("2x2", 15.48, {}),
    # A run on v4 sees the two cores of a chip as one device.
    "v4": Chip("2x2x1", 30.75, {"chip_config_name": "megacore"}),
    "v5e": Chip("2x2", 15.75, {}),
    "v5p": Chip("2x2x1", 95.74, {}),
    "v6e": Chip("2x2", 31.25, {}),
    "tpu7x": Chip("2x2x1", 94.75, {}),
}
# Without these, libtpu asks a TPU machine's metadata server and complains. It would also
# lock out other processes, although no TPU is opened here.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def is_slice(text: str) -> bool:
    """Returns whether a text means a slice rather than a number of devices."""
    return ":" in text or text in CHIPS


def described(text: str, flag: str) -> tuple[list[Any], int]:
    """Returns (devices to compile for, bytes that a program may use on each).

    text: a slice such as "v5e:4x4", a chip and its axes. Needs libtpu, but no TPU. Raises
    `InputError`, which names `flag`.
    """
    name, _, shape = text.partition(":")
    chip = lookup(CHIPS, name, f"TPU in {flag}={text}")
    sides = [int(side) for side in re.findall(r"\d+", shape)]
    axes = chip.slice.count("x") + 1
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or len(sides) != axes:
        raise InputError(
            f"{flag}={text} must say how many chips there are along each of {axes} axes;"
            f" try {flag}={name}:{chip.slice}"
        )
    if not (importlib.util.find_spec("libtpu") or "TPU_LIBRARY_PATH" in os.environ):
        raise InputError(
            f"{flag}={text} needs the TPU's compiler, libtpu; pip install 'jaxcls[tpu]', or"
            f" give {flag}=8 for CPU devices"
        )
    for key, value in _ALONE.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    # A host has 2x2 chips, or fewer if the slice is smaller.
    host = (*(math.gcd(2, side) for side in sides[:2]), 1)
    try:
        found = topologies.get_topology_desc(
            text, "tpu", chips_per_host_bounds=host, **chip.options
        )
    except (RuntimeError, jax.errors.JaxRuntimeError) as error:
        raise InputError(
            f"{flag}={text} is no slice that libtpu describes ({first_line(error)}); try"
            f" {flag}={name}:{chip.slice}"
        ) from None
    return found.devices, int(chip.room * 2**30)
