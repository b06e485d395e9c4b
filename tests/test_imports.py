"""Imports point up a list: each package imports from itself and from those above it."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "jaxcls"
ORDER = [
    "version", "errors", "atomic", "pickles", "console",
    "config", "devices", "augment", "models", "data", "learning", "runs", "experiment",
    "evaluation", "predict", "training", "export", "studies", "report", "commands",
    "__init__", "main", "__main__",
]  # fmt: skip
READ_CONFIGS = {"__init__", "config", "data", "runs", "experiment", "studies", "commands"}


def package_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The packages and top modules of jaxcls that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "jaxcls":
            names = {alias.name for alias in node.names}
            found |= {"__init__" if name.startswith("__") else name for name in names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxcls."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            found |= {[*each, "__init__"][1] for each in parts if each[0] == "jaxcls"}
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative"
    return found


def test_the_list_is_what_is_there():
    assert sorted(ORDER) == sorted({package_of(path) for path in PACKAGE.rglob("*.py")})


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_up_the_list(path):
    assert imported(path) <= set(ORDER[: ORDER.index(package_of(path)) + 1])


def test_only_what_may_read_a_config_does():
    for path in PACKAGE.rglob("*.py"):
        if "ml_collections" in path.read_text():
            assert package_of(path) in READ_CONFIGS


def test_only_commands_know_argparse():
    for path in PACKAGE.rglob("*.py"):
        if "import argparse" in path.read_text():
            assert package_of(path) == "commands"


def test_importing_jaxcls_alone_imports_no_jax():
    code = (
        "import sys, jaxcls\n"
        "assert 'jax' not in sys.modules and callable(jaxcls.load)\n"
        "assert callable(jaxcls.models.create) and callable(jaxcls.augment.apply)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_starts_no_device_and_no_tensorflow():
    code = (
        "import sys, jaxcls.main\n"
        "from jaxcls import commands, config, evaluation, experiment\n"
        "from jaxcls.commands import evaluate, predict, prepare, train\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "assert not {'tensorflow', 'scipy.optimize', 'scipy.special'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
