"""Eight fake CPU devices, one prepared digits dataset, and small configs for tests."""

import gc
import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tempfile
import types

# Before jax is imported anywhere: the count is fixed when the backend starts.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Most of the suite's time is LLVM's, and what it optimises is not ours to test; the
# processes that tests start have it too, so that bits can be compared.
# The older emitters of fusions compile faster; a later XLA has no others, nor the flag.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0" + (
    " --xla_cpu_use_fusion_emitters=false"
    if importlib.metadata.version("jaxlib") < "0.11"
    else ""
)
# Threads of BLAS and of torch wait for one another by spinning, and each core has a worker.
os.environ["OMP_NUM_THREADS"] = "1"
import jax
import pytest

from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.data import sources
from jaxcls.models import weights
from jaxcls.report import charts
from jaxcls.training import train
from tests import settings
from tests.dying import dying
from tests.modules import zeros_of

# JAX makes millions of objects that stay; a collector of the usual eagerness reads them
# over and over.
gc.set_threshold(200_000, 20, 50)
jax.config.update("jax_numpy_rank_promotion", "raise")
# What one test has compiled serves the next, and the processes that tests start; those
# that must make the same bits by themselves go without. A cache of this session alone.
COMPILED = tempfile.TemporaryDirectory(prefix="jaxcls-tests-")
jax.config.update("jax_compilation_cache_dir", COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder in which digits is prepared."""
    folder = tmp_path_factory.mktemp("data")
    sources.Dataset("digits", str(folder))
    return folder


@pytest.fixture(scope="session")
def resnet50_file(tmp_path_factory):
    """Weights as others publish them: 1000 classes, and what images they are for."""
    file = tmp_path_factory.mktemp("weights") / "resnet50.safetensors"
    told = weights.Preprocessing((0.5,) * 3, (0.5,) * 3, 224, 0.875, "bicubic")
    weights.write(file, zeros_of("resnet50", "timm"), told, ())
    return file


@pytest.fixture
def tiny(data_dir):
    """``tiny(**{"optim.lr": 0.1})`` -> a config that trains in a second or two."""

    def make(**overrides):
        values = {
            "length": "12 steps",
            "model.name": "cnn(widths=(4, 8), dense=16, dropout=0.2, batch_norm=True)",
            "augment": "flip",
            "mix": "mixup(0.2)",
            "optim.weight_decay": 0.01,
            "ema.decay": 0.9,
            "eval.every": "4 steps",
            "checkpoint.every": "3 steps",
            "log.every": "2 steps",
            **overrides,
        }
        return settings.digits(data_dir, **values)

    return make


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """``whole(config)`` -> (folder, result) of its run, which nothing stopped."""
    made = {}

    def get(config):
        if config.to_json() not in made:
            folder = tmp_path_factory.mktemp("whole") / "run"
            made[config.to_json()] = folder, train.run(dying(config), str(folder))
        return made[config.to_json()]

    return get


@pytest.fixture(scope="session")
def brief_run(tmp_path_factory, data_dir):
    """The folder of a run of two steps on digits, to predict with."""
    folder = str(tmp_path_factory.mktemp("brief") / "run")
    ops = "decode(1) | resize(8)"
    values = {
        "length": "2 steps", "data.name": "digits", "data.dir": str(data_dir),
        "data.train": "train", "data.test": "", "data.train_ops": ops,
        "data.eval_ops": ops, "model.name": "cnn(widths=(4,), dense=8)", "optim.lr": 0.1,
        "log.tensorboard": False, "mesh.devices": 1,
    }  # fmt: skip
    train.run(experiment.build(loading.from_flat(values)), folder)
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """The charts of a page are empty: matplotlib takes longer than all else."""

    def chart(title, about, height, draw, readings):
        return charts.Chart(title, about, f"0 0 9 {height}", "", {})

    monkeypatch.setattr(charts, "chart", chart)


def popen(data_dir, *command, devices=1, cwd=None, **environment):
    """A process that finds jaxcls and the data, on so many CPU devices."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd or ROOT,
        env={
            **os.environ,
            "TFDS_DATA_DIR": str(data_dir),
            "JAX_NUM_CPU_DEVICES": str(devices),
            "PYTHONPATH": str(ROOT),
            **environment,
        },
    )


@pytest.fixture
def started(data_dir):
    """``started("-m", "jaxcls.main", "--config=...")`` -> a running Python; see `popen`."""
    processes = []

    def start(*arguments, program=sys.executable, **more):
        processes.append(popen(data_dir, program, *arguments, **more))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def command(started):
    """``command("train", "--config=...")`` -> the finished process, one CPU device."""

    def run(verb, *arguments, **more):
        process = started("-m", "jaxcls", verb, *arguments, **more)
        texts = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, *texts)

    return run


@pytest.fixture(scope="session")
def torchvision():
    """torchvision's models, whose compiled operators do not load without CUDA."""
    torch = pytest.importorskip("torch")
    for name in ("_meta_registrations", "_autograd_registrations"):
        sys.modules[f"torchvision.{name}"] = types.ModuleType(name)
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip("torchvision")
