"""The library of convolutions on a CPU: which is chosen, and that a run keeps it."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys

import jax
import pytest

from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.devices import compiling, mesh
from jaxcls.errors import InputError, StoppedError
from jaxcls.training import train
from tests.conftest import ROOT
from tests.run_folders import record_bytes

FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


@pytest.fixture
def machine(monkeypatch):
    """``machine("x86_64", "0.10.2")`` -> a mesh on such a machine with such a jaxlib."""

    def make(processor, version, flags=""):
        monkeypatch.setattr(platform, "machine", lambda: processor)
        monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
        monkeypatch.setenv("XLA_FLAGS", flags)
        return mesh.make(1)

    return make


@pytest.mark.parametrize(
    ("processor", "version", "asked", "expected"),
    [
        ("x86_64", "0.10.2", "auto", "eigen"),
        ("AMD64", "0.12.0.1", "auto", "eigen"),
        ("aarch64", "0.10.2", "auto", "ynnpack"),
        ("x86_64", "0.13.0", "auto", "ynnpack"),
        ("x86_64", "0.10.2", "ynnpack", "ynnpack"),
        ("aarch64", "0.10.2", "eigen", "eigen"),
    ],
)
def test_the_faster_library_is_chosen_where_it_is_known(
    machine, processor, version, asked, expected
):
    assert compiling.chosen(asked, machine(processor, version)) == expected


def test_flags_of_the_user_win_and_an_unknown_release_is_refused(machine):
    assert compiling.chosen("eigen", machine("x86_64", "0.10.2", FLAG)) == "xla_flags"
    assert compiling.options("xla_flags") is None
    with pytest.raises(InputError, match=r"convolution=eigen .* this is 0\.9\.1; give"):
        compiling.chosen("eigen", machine("x86_64", "0.9.1"))


def library_of(folder):
    starts = json.loads((folder / "manifest.json").read_text())["starts"]
    return [start["convolution"] for start in starts]


@pytest.mark.slow
def test_a_run_keeps_its_library_when_it_goes_on(tiny, tmp_path, whole):
    other = tiny(**{"compile.convolution": "ynnpack"})
    expected, _ = whole(other)
    with pytest.raises(StoppedError):
        train.run(experiment.build(other), str(tmp_path), until=5)
    train.run(experiment.build(tiny()), str(tmp_path))
    assert library_of(tmp_path) == ["ynnpack", "ynnpack"]
    assert record_bytes(tmp_path) == record_bytes(expected)


IS_X86 = platform.machine() in ("x86_64", "AMD64")


@pytest.mark.slow
@pytest.mark.skipif(not IS_X86, reason="only on x86 is another library chosen")
def test_the_choice_is_that_of_the_flag_and_moves_bits(tiny, tmp_path, whole, data_dir):
    values = {"mesh.devices": 1, "length": "4 steps"}
    ours, _ = whole(tiny(**values))
    theirs, _ = whole(tiny(**values, **{"compile.convolution": "ynnpack"}))
    assert library_of(ours) == ["eigen"]
    assert record_bytes(ours) != record_bytes(theirs)
    code = (
        "import json, sys; from jaxcls.training import train\n"
        "from jaxcls import experiment; from jaxcls.config import loading\n"
        "config = loading.from_flat(json.loads(sys.argv[1]))\n"
        "train.run(experiment.build(config), sys.argv[2])"
    )
    config = json.dumps(loading.flat(tiny(**values)))
    flags = f"{os.environ['XLA_FLAGS']} {FLAG}"
    done = subprocess.run(
        [sys.executable, "-c", code, config, str(tmp_path / "flag")],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "XLA_FLAGS choose the library of convolutions" in done.stdout
    assert library_of(tmp_path / "flag") == ["xla_flags"]
    assert record_bytes(tmp_path / "flag") == record_bytes(ours)


def test_every_program_of_a_run_is_compiled_with_its_options(tiny):
    exp = experiment.build(tiny(**{"compile.convolution": "eigen"}))
    assert exp.programs.jit.keywords == {"compiler_options": compiling.options("eigen")}
    assert experiment.build(tiny()).resuming(None).convolution in compiling.CHOICES
    assert exp.resuming("ynnpack") is exp  # The config names one.
    assert jax.devices()[0].platform == "cpu"
