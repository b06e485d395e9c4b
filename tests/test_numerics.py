"""A change that alters bits raises NUMERICS: the digests of two runs on known machines.

``python -m tests.golden numerics`` records those of this machine.
"""

import hashlib
import json
import os
import pathlib
import re

import pytest

from jaxcls.runs import provenance
from jaxcls.version import COMMITS, NUMERICS
from tests.golden import GOLDEN

TABLE = GOLDEN / "numerics.json"
RUNS = {
    "cnn": {"augment": "random_crop(1) | flip"},
    "vit": {
        "length": "6 steps",
        "model.name": "vit_ti_16(patch=4, depth=2, width=32, heads=2)",
        "augment": "randaugment(2, 10) | random_erasing(0.3)",
        "mix": "cutmix",
        "optim.name": "sgd(momentum=0.9)",
        "optim.lr": 0.1,
        "optim.accumulate": 2,
    },
}


def machine():
    """What decides bits besides the code, in a word."""
    cpu, info = provenance.cpu(), pathlib.Path("/proc/cpuinfo")
    # Eigen cuts products by the sizes of caches, which follow from the model.
    model = r"^(?:cpu family|model|stepping|cache size)\s*:.*$"
    about = re.findall(model, info.read_text(), re.MULTILINE) if info.exists() else []
    flags = os.environ["XLA_FLAGS"]
    kind = json.dumps([cpu["machine"], cpu["instructions"], sorted(set(about)), flags])
    digest = hashlib.sha256(kind.encode()).hexdigest()[:12]
    versions = provenance.versions(("jax", "jaxlib", "numpy"))
    return " ".join([*map(str, versions.values()), f"{cpu['cores']} cores", digest])


def test_every_earlier_number_has_a_commit():
    assert set(COMMITS) == set(range(NUMERICS))
    assert all(len(commit) == 40 for commit in COMMITS.values())


def test_the_bits_are_those_of_the_number(tiny, whole):
    table = json.loads(TABLE.read_text())
    here, is_recording = machine(), "JAXCLS_RECORD" in os.environ
    if not is_recording:
        assert table["numerics"] == NUMERICS, "record them: python -m tests.golden numerics"
        if here not in table["machines"]:
            pytest.skip(f"no bits are recorded of {here}: python -m tests.golden numerics")
    found = {}
    for name, values in RUNS.items():
        folder, _ = whole(tiny(**values))
        text = b"".join(
            (folder / f"{each}.jsonl").read_bytes() for each in ("metrics", "digests")
        )
        found[name] = hashlib.sha256(text).hexdigest()[:16]
    if is_recording:
        known = table["machines"] if table["numerics"] == NUMERICS else {}
        table = {"numerics": NUMERICS, "machines": known | {here: found}}
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
    assert table["machines"][here] == found, (
        "a change of the code altered bits: if it must, raise NUMERICS, name the commit"
        " before it in COMMITS, and record the new bits"
    )
