"""Digests: against NumPy, on any sharding, and without moving an array."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxcls.devices import mesh
from jaxcls.runs import digests

SHAPES = [(), (1,), (7,), (33, 5), (3, 3, 2, 65), (4, 0)]
SPLITS = [(), ("fsdp",), (None, "fsdp"), (("data", "fsdp"),), ("fsdp", None, "data")]


def by_numpy(array):
    """The digest in Python's integers: MurmurHash3's finaliser, of bits and position."""
    if array.dtype != bool:
        array = array.view(f"uint{8 * array.dtype.itemsize}")
    sums = []
    for salt in (0x9E3779B9, 0x85EBCA77):
        total = 0
        for position, bits in enumerate(array.ravel().tolist()):
            mixed = int(bits) ^ ((position + 1) * salt % 2**32)
            mixed = (mixed ^ (mixed >> 16)) * 0x85EBCA6B % 2**32
            mixed = (mixed ^ (mixed >> 13)) * 0xC2B2AE35 % 2**32
            total += mixed ^ (mixed >> 16)
        sums.append(total % 2**32)
    return f"{sums[0]:08x}{sums[1]:08x}"


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int32", "int8", "uint8", "uint32", "bool"]
)
def test_a_digest_is_what_numpy_makes_of_the_bits(dtype):
    rng = np.random.default_rng(0)
    arrays = {
        str(i): (100 * rng.normal(size=shape)).astype(np.int8).astype(jnp.dtype(dtype))
        for i, shape in enumerate(SHAPES)
    }
    assert digests.of_tree(arrays) == {k: by_numpy(v) for k, v in arrays.items()}


def test_old_digests_stay_what_they_were():
    key = jax.random.key_data(jax.random.key(3, impl="threefry2x32"))
    numbers = np.arange(12, dtype=np.float32).reshape(3, 4)
    # As recorded in 2026, before both sums were made in one pass.
    found = digests.of_tree({"key": key, "numbers": numbers, "step": jnp.int32(5)})
    assert found == {
        "key": "8ef9e8c4f71535bb",
        "numbers": "a6251a7fbd1c6413",
        "step": "ed81ded3d7d644ca",
    }


@pytest.mark.parametrize("split", SPLITS)
def test_arrays_in_parts_have_the_same_digest_and_only_sums_are_sent(split):
    array = np.random.default_rng(0).normal(size=(16, 24, 40)).astype(np.float32)
    where = NamedSharding(mesh.make(8, fsdp=4), PartitionSpec(*split))
    parts = jax.device_put(array, where)
    assert digests.of_tree({"x": parts}) == {"x": by_numpy(array)}
    text = digests._hash.lower(parts).compile().as_text()
    sent = re.findall(r"= \(?\w+\[([\d,]*)\]\S* (?:all-|collective-|reduce-scatter)", text)
    assert bool(sent) == bool(split)
    sizes = [np.prod([int(n) for n in shape.split(",") if n]) for shape in sent]
    assert max(sizes, default=0) <= 8


def test_no_array_is_written_on_the_way():
    like = jax.ShapeDtypeStruct((512, 1024), jnp.float32)
    memory = digests._hash.lower(like).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 512 * 1024
