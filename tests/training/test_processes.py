"""The same global batches on any number of real processes, down to what the model sees."""

import json
import socket

import pytest

STEPS = 4

# Prints, for each config and batch, the digest of every row that this process holds.
PROGRAM = """
import hashlib, json, sys
import jax, numpy as np
address, count, number, configs = sys.argv[1], *map(json.loads, sys.argv[2:])
if count > 1:
    jax.distributed.initialize(address, count, number)
from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.experiment import recipe

def present(batch):
    if isinstance(batch, dict):
        return batch
    return {name: x for name, x in batch._asdict().items() if not isinstance(x, tuple)}

def rows(batch):
    found = {}
    for name, array in sorted(present(batch).items()):
        for shard in array.addressable_shards:
            first = shard.index[0].start or 0
            for i, row in enumerate(np.asarray(shard.data)):
                digest = hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()
                found[f"{name} {first + i}"] = digest[:16]
    return found

def of(config):
    exp = experiment.build(loading.from_flat(config))
    assert exp.mesh.size == 4 and jax.process_count() == count
    batches = [*exp.train_batches(), *exp.eval_batches("test[:50]", "data.eval")]
    inputs, key = jax.jit(exp.recipe.inputs), recipe.keys(exp.config)[1]["augment"]
    for step, batch in enumerate(batches[:-2]):
        images, targets = inputs(key, step, batch)
        batches[step] = {**present(batch), "augmented": images, "target": targets}
    return [rows(batch) for batch in batches]

print("ROWS" + json.dumps([of(config) for config in configs]), flush=True)
"""
STREAMED = {"data.resident": "off", "data.train_ops": "decode | random_resized_crop(8)"}
RESIDENT = {"data.resident": "on", "data.train_ops": "decode", "data.balance": True}


def global_batches(started, count, data_dir, **changes):
    """Every row of every batch, streamed and resident, from `count` processes."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    config = {
        "data.dir": str(data_dir),
        "batch_size": 32,
        "length": f"{STEPS} steps",
        "data.eval": "train[90%:]",
        "augment": "random_crop(1) | flip",
        "mix": "mixup(0.2)",
        **changes,
    }
    configs = json.dumps([config | STREAMED, config | RESIDENT])
    arguments = "-c", PROGRAM, f"localhost:{port}", str(count)
    running = [
        started(*arguments, str(number), configs, devices=4 // count)
        for number in range(count)
    ]
    whole = [[{} for _ in range(STEPS + 2)] for _ in range(2)]
    for process in running:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        (line,) = [text for text in out.splitlines() if text.startswith("ROWS")]
        for batches, parts in zip(whole, json.loads(line[4:]), strict=True):
            for batch, part in zip(batches, parts, strict=True):
                assert not set(batch) & set(part)  # Each row is held by one process.
                batch |= part
    return whole


@pytest.mark.slow
def test_law_3_any_number_of_processes_has_the_same_batches(started, data_dir):
    one = global_batches(started, 1, data_dir, **{"data.threads": 3})
    # 32 rows each of image, label, index, epoch, and what the model is given of them.
    assert {len(batch) for batches in one for batch in batches[:STEPS]} == {6 * 32}
    for count in (2, 4):
        other = global_batches(started, count, data_dir, **{"data.threads": 1})
        for found, expected in zip(other, one, strict=True):
            assert found == expected
