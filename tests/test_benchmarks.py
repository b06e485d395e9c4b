"""The benchmarks run as their README says, on a little; nothing here is timed."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

LITTLE = {
    "augment": ["--model=cnn(widths=(4,))", "--size=16", "--batch_size=4", "--segments=2"],
    "loop": ["--model=cnn(widths=(4,))", "--batch=8", "--steps=8", "--segments=2"],
    "predict": ["--files=8", "--batch=4", "--segments=1"],
    "together": ["--model=cnn(widths=(4,))", "--seeds=2", "--steps=2", "--segments=2"],
    "input": ["--records=32", "--batch=8", "--steps=1", "--segments=1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LITTLE)
def test_a_benchmark_prints_its_figures(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", *LITTLE[name]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d images/s", done.stdout), done.stdout
