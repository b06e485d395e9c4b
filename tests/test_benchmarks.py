"""The benchmarks run as their README says, on a little; nothing here is timed."""

import math
import re
import subprocess
import sys
import types

import jax
import pytest

from benchmarks import measuring, step
from tests.conftest import ROOT

LITTLE = {
    "augment": ["--model=cnn(widths=(4,))", "--size=16", "--batch_size=4", "--segments=2"],
    "step": ["--model=cnn(widths=(4,))", "--size=16", "--batch=8", "--segments=2"],
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


def test_a_rate_of_products_is_positive_and_finite():
    pace = measuring.paced(step.products("bfloat16", 64), 3)
    assert 0 < 2.0 * 64**3 / pace.clock < math.inf


def test_a_spread_is_the_median_and_the_range():
    assert measuring.spread([3.0, 1.0, 2.0], ".1f") == "2.0 (1.0 to 3.0)"


def args_of(model, size):
    values = {"model": model, "size": size, "batch": 2, "classes": 10}
    return types.SimpleNamespace(**values, precision="float32")


def test_the_arithmetic_of_a_step_is_that_of_three_forward_passes():
    exp = step.built(args_of("cnn(widths=(4,), dense=5)", 8))
    # Of two images: a 3x3 convolution, pooling by 2, a dense layer and the head.
    forward = 2 * (8 * 8 * 4 * (3 * 3 * 3) + 4 * 4 * 4 * 5 + 5 * 10)
    assert step.flop(exp) == 3 * 2 * forward


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("resnet18(stem='small')", 32),
        ("resnet50", 64),
        ("vit_s_16", 224),
        ("vit_b_16", 224),
        ("convnext_tiny", 64),
    ],
)
def test_torchs_model_has_as_many_parameters(torchvision, model, size):
    reference = pytest.importorskip("benchmarks.reference")
    name, _, options = model.partition("(")
    theirs = reference.model_of(name, {"stem": "small"} if options else {}, 10)
    params = step.built(args_of(model, size)).state_shapes.params
    ours = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    assert sum(p.numel() for p in theirs.parameters()) == ours
