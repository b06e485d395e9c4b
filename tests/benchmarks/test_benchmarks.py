"""The benchmarks run as their README says, on a little; nothing here is timed."""

import math
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import sklearn

from benchmarks import backbones, figures, growth, measuring, speedrun, start, step
from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.data.batch import Batch
from jaxcls.errors import InputError
from tests.conftest import ROOT

IMAGES = pathlib.Path(sklearn.__file__).parent / "datasets/images"
# Name of a benchmark -> (flags for a little of it, what it prints).
LITTLE = {
    "augment": (
        "--model=cnn(widths=(4,)) --size=16 --batch_size=4 --segments=2",
        r"\d images/s",
    ),
    "convolutions": (
        "--model=cnn(widths=(4,)) --size=16 --batch=8 --segments=2",
        r"eigen / ynnpack \d",
    ),
    "onnx": (
        "--models=resnet18 --size=32 --segments=2 --runs=1",
        r"ours / torch\.onnx \d.*; logits [1-9]e-0[67] apart",
    ),
    "loop": (
        f"--model=cnn(widths=(4,)) --batch=8 --steps=2 --segments=1 --images={IMAGES}",
        r"loop / bare \d",
    ),
    "predict": ("--files=8 --batch=4 --segments=1", r"\d images/s"),
    "input": ("--records=32 --batch=8 --steps=1 --segments=1", r"\d images/s"),
    "start": ("--starts=1 --config.model.name=cnn(widths=(4,))", "warm cache: .* s "),
    "checkpoint": (
        "--model=cnn(widths=(4,)) --batch=8 --steps=9 --every=4 --segments=1 --saves=1"
        " --state=vit_ti_16(patch=32,width=32,depth=1,heads=2)",
        r"blocked for \d",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LITTLE)
def test_a_benchmark_prints_its_figures(name, data_dir):
    if name == "onnx":
        for package in ("torch", "jax2onnx"):
            pytest.importorskip(package)
    flags, said = LITTLE[name]
    command = [sys.executable, "-m", f"benchmarks.{name}", *flags.split()]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env={**os.environ, "TFDS_DATA_DIR": str(data_dir), "JAX_NUM_CPU_DEVICES": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(said, done.stdout), done.stdout


@pytest.mark.slow
def test_a_backbone_has_a_cell_of_memory_and_time(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    cell = backbones.measured("convnextv2_atto", "probe", 2)
    memory, seconds = re.fullmatch(r"(\S+) MiB, (\S+) s", cell).groups()
    assert 3.4 * 4 < float(memory) < 200  # 3.4 million params of 4 bytes, at least.
    assert 0 < float(seconds) < 60
    assert "unknown backbone 'resnet51'" in backbones.measured("resnet51", "probe", 2)


@pytest.mark.slow
def test_how_costs_grow_is_told_and_drawn(tmp_path, monkeypatch, capsys):
    """Starts are those of the benchmark of starts; here their figures are by hand."""

    def started(file, cache, overrides, until=1):
        exp = experiment.build(loading.load(file, overrides))
        examples = exp.data.examples("train")
        memory = 2**20 * examples * until**2
        return dict.fromkeys(start.PHASES, 1.0) | {"processor": 3.0, "memory": memory}

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(start, "start", started)
    flags = "--batches=8,16 --depths=1,2 --examples=60,120 --steps=2,4 --turns=1"
    rest = "--segments=1", "--processes=1", f"--output={tmp_path}/growth.png"
    monkeypatch.setattr(sys, "argv", ["growth", *flags.split(), *rest])
    growth.main()
    said = capsys.readouterr().out
    assert re.findall(r"^grows as (\w+)\^", said, re.MULTILINE) == [
        "batch", "depth", "examples", "steps", "examples", "examples",
    ]  # fmt: skip
    for each in ("examples^1.00", "steps^2.00", "examples^0.00"):
        assert f"grows as {each}\n" in said
    assert (tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_its_parts_one_after_the_other(data_dir, tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", f"--out={tmp_path}"]
    done = subprocess.run(
        [*command, f"--data_dir={data_dir}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": status 0") == 5, done.stdout
    assert re.search(r"\d images/s", (tmp_path / "step-cnn.txt").read_text())
    digests = re.findall(r"digest of the params after \d+ steps: (\w+)", done.stdout)
    assert len(digests) == 3
    assert len(set(digests[1:])) == 1  # The same steps in two processes.


@pytest.mark.slow
def test_peak_memory_is_of_a_process_and_not_of_its_parent():
    block = np.ones(2**28, np.uint8)
    code = "from benchmarks import measuring; print(measuring.peak_rss())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert int(done.stdout) < measuring.peak_rss() - block.nbytes // 2


TABLE = """
print("from the internet: | no | table")
print("|  run     |  epoch  |  train_acc  |  tta_val_acc  |  total_time_seconds  |")
print("|  warmup  |      0  |     0.5000  |               |             99.0000  |")
print("|          |   eval  |     0.9000  |       0.9100  |            100.0000  |")
print("|       0  |      0  |     0.5000  |               |              1.0000  |")
print("|          |      1  |     0.7000  |               |              2.0000  |")
print("|          |   eval  |     0.9600  |       0.9410  |              4.0000  |")
print("|       1  |      0  |     0.5000  |               |              1.0000  |")
print("|          |   eval  |     0.9600  |       0.9390  |              4.5000  |")
"""


@pytest.mark.slow
def test_a_speed_run_is_told_beside_airbench(data_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    script = tmp_path / "airbench94.py"
    script.write_text(TABLE)
    little = ["--config=configs/digits.py", f"--config.data.dir={data_dir}", "--steps=150"]
    little += ["--config.model.name=cnn(widths=(4,), dense=16)", "--seeds=2"]
    little += ["--config.optim.lr=0.02"]
    assert speedrun.main([*little, f"--airbench={script}"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("no accelerator here: the figures only show")
    seeds = [float(x) for x in re.findall(r"seed \d: (\d.\d+) in \d", said)]
    assert len(seeds) == 2
    assert min(seeds) > 0.5  # By chance 0.1.
    ours, clock, *_ = re.findall(r"jaxcls, .*? 2  +(\S+) ± \S+ .* (\S+) ± ", said)
    assert float(ours[0]) == pytest.approx(np.mean(seeds), abs=1e-4)
    assert float(ours[1]) < float(clock[1])
    assert re.search(r"airbench +2 +0.9400 ± 0.0014 +50 % +4.250 ± 0.354", said)
    ratio = float(re.search(r"airbench takes (\S+) times as long", said)[1])
    assert ratio == pytest.approx(4.25 / float(clock[1]), rel=0.05)


def test_a_table_of_airbench_is_read_without_its_warm_up(tmp_path, capsys):
    exec(TABLE, {})
    found = speedrun.table_of(capsys.readouterr().out)
    assert found == [(0.941, 4.0), (0.939, 4.5)]
    with pytest.raises(InputError, match="no row with tta_val_acc"):
        speedrun.table_of("| a | b |\n")
    for text, message in (("1 / 0", "status 1 .ZeroDivision.*=PYTHON"), ("", "no row")):
        (tmp_path / "theirs.py").write_text(text)
        with pytest.raises(InputError, match=message):
            speedrun.airbench(str(tmp_path / "theirs.py"), sys.executable)
    with pytest.raises(InputError, match=r"--airbench=no\.py is not a file"):
        speedrun.airbench("no.py", sys.executable)


def test_six_views_are_shifts_by_a_pixel_and_their_mirror_images():
    image = np.arange(1, 13, dtype=np.uint8).reshape(1, 3, 4, 1)
    views = [np.asarray(v)[0, :, :, 0] for v in speedrun.six_views(image)]
    plain, mirrored, down, _, up, up_mirrored = views
    assert plain.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert mirrored[0].tolist() == [4, 3, 2, 1]
    assert down.tolist() == [[6, 5, 6, 7], [2, 1, 2, 3], [6, 5, 6, 7]]
    assert up.tolist() == [[6, 7, 8, 7], [10, 11, 12, 11], [6, 7, 8, 7]]
    assert up_mirrored[0].tolist() == [7, 8, 7, 6]


@pytest.mark.parametrize(("real", "uncertain"), [(8, [5, 2]), (4, [2])])
def test_views_decide_for_the_least_confident_quarter_of_the_real_examples(real, uncertain):
    # A brighter pixel makes class 0 less sure from the right, and class 1 from the left.
    images = np.zeros((8, 4, 4, 1), np.uint8)
    images[:, 1, 2] = 9 - np.array([9, 8, 1, 6, 5, 0, 7, 2])[:, None]

    def logits_step(variables, images):
        left = images[:, :, :2].sum((1, 2, 3), dtype=np.float32)
        right = images[:, :, 2:].sum((1, 2, 3), dtype=np.float32)
        return jax.numpy.stack([10 - right, left], 1) * variables

    recipe = types.SimpleNamespace(logits_step=lambda: logits_step)
    exp = types.SimpleNamespace(recipe=recipe, programs=types.SimpleNamespace(jit=jax.jit))
    mask = np.arange(8) < real
    batch = Batch(image=images, label=np.zeros(8, np.int32), mask=mask)
    plain, viewed = speedrun.scorer(exp)(np.float32(1.0), batch)
    views = speedrun.six_views(images)
    mean = np.mean([logits_step(1.0, np.asarray(view)) for view in views], 0)
    once = logits_step(1.0, images)
    assert plain.tolist() == ((once.argmax(1) == 0) & mask).tolist()
    expected = np.asarray(once).copy()
    expected[uncertain] = mean[uncertain]
    assert viewed.tolist() == ((expected.argmax(1) == 0) & mask).tolist()
    assert plain.tolist() != viewed.tolist()


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
        ("convnext_tiny", 64),
    ],
)
def test_torchs_model_has_as_many_parameters(torchvision, model, size):
    reference = pytest.importorskip("benchmarks.reference")
    name, _, options = model.partition("(")
    theirs = reference.model_of(name, {"stem": "small"} if options else {}, 10)
    params = step.built(args_of(model, size)).programs.state_shapes.params
    ours = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    assert sum(p.numel() for p in theirs.parameters()) == ours


def test_a_table_has_columns():
    text = figures.table(("size", "ms"), [("1", "2.5"), ("1,000", "12.5")])
    assert text.splitlines() == ["size     ms", "1       2.5", "1,000  12.5"]


@pytest.mark.parametrize("k", [0, 1, 2])
def test_how_a_cost_grows_is_the_slope_of_logarithms(k):
    sizes = [3, 30, 500]
    assert figures.exponent(sizes, [7 * size**k for size in sizes]) == pytest.approx(k)
