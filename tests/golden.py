"""What tests compare with, written anew.

``python -m tests.golden`` rewrites tests/golden/*.txt from the configs. At a release
``python -m tests.golden VERSION`` writes run-VERSION.tar.gz: the folder of a tiny run,
which every later version must be able to read (tests/runs/test_compatibility.py).
``python -m tests.golden numerics`` records this machine's bits for tests/test_numerics.py.
"""

import gzip
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile

from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.training import train
from tests.settings import digits

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"
TINY = {
    "batch_size": 16,
    "length": "3 steps",
    "model.name": "cnn(widths=(2, 4), dense=4, batch_norm=True)",
    "ema.decay": 0.9,
}
TIMED = "lock", "manifest.json", "timing.jsonl"
# What the configs that take an argument are given.
ARGUMENTS = {
    "backbones": ("dinov2_s_14", "swin_t,lora", "convnextv2_tiny,lora"),
    "cifar10_fast": ("cifar10", "cifar10_jpeg"),
    "cifar_wrn": ("cifar10", "cifar100"),
    "resnet50_rsb": ("a1", "a2", "a3"),
    "tutorial_cifar10": ("cifar10", "cifar10_jpeg"),
    "tutorial_resnet": ("cifar10", "cifar10_jpeg"),
    "vit_s16": ("90", "300"),
}


def configs() -> dict[str, pathlib.Path]:
    """Every config that ships, "digits.py" or "vit_s16.py:90", and its golden text."""
    found = {}
    for path in sorted((GOLDEN.parent.parent / "configs").glob("[!_]*.py")):
        for argument in ARGUMENTS.get(path.stem, ("",)):
            end = f"-{argument}" if argument else ""
            name = f"{path.name}:{argument}" if argument else path.name
            found[name] = GOLDEN / f"{path.stem}{end}.txt"
    return found


def write_configs() -> None:
    """The resolved text of every config that ships."""
    for name, golden in configs().items():
        golden.write_text(loading.to_text(loading.load(f"configs/{name}")))


def write_run(version: str) -> None:
    """The folder of a run of three steps on digits, without times and paths."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "run"
        made = digits(scratch, **TINY)
        train.run(experiment.build(made), str(folder))
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.name not in TIMED:
                    text = _without_paths(path, scratch)
                    member = tarfile.TarInfo(f"run/{path.relative_to(folder).as_posix()}")
                    member.size = len(text)
                    archive.addfile(member, io.BytesIO(text))
        (GOLDEN / f"run-{version}.tar.gz").write_bytes(
            gzip.compress(raw.getvalue(), mtime=0)
        )


def record_numerics() -> None:
    """The digests of the runs of tests/test_numerics.py on this machine."""
    command = (sys.executable, "-m", "pytest", "-n0", "tests/test_numerics.py")
    environment = {**os.environ, "JAXCLS_RECORD": "1"}
    subprocess.run(command, cwd=GOLDEN.parent.parent, env=environment, check=True)


def _without_paths(path: pathlib.Path, scratch: str) -> bytes:
    if path.name == "commit_success.txt":  # Orbax looks for it, and not into it.
        return b"Checkpoint commit was successful\n"
    if path.name == "config.json":
        saved = json.loads(path.read_text())
        saved["config"]["data.dir"] = ""
        return json.dumps(saved, indent=1).encode()
    text = path.read_bytes()
    assert scratch.encode() not in text, path
    return text


if __name__ == "__main__":
    if sys.argv[1:] == ["numerics"]:
        record_numerics()
    elif sys.argv[1:]:
        write_run(sys.argv[1])
    else:
        write_configs()
