"""Imports point down only: commands -> verbs -> experiment -> nouns."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "jaxcls"
# Below everything.
SHARED = {
    "atomic",
    "console",
    "errors",
    "pickles",
    "pipeline",
    "durations",
    "knobs",
    "published",
    "records",
    "splits",
    "version",
    "__init__",
}
# Above everything, and imported by nothing else.
COMMANDS = {"commands", "main", "__main__"}
VERBS = {
    "reproduce": {"checkpoint", "config", "experiment", "logs", "proof", "provenance"}
    | {"sources", "stopping", "together", "train", "workdir"},
    "train": {"checkpoint", "config", "evaluate", "experiment", "hints", "hosts", "logs"}
    | {"loop", "memory", "meter", "pictures", "provenance", "saving", "show", "step"}
    | {"stepping", "stopping", "trackers", "watchdog", "workdir"},
    "loop": {"checkpoint", "digesting", "evaluate", "experiment", "hosts", "logs", "mesh"}
    | {"profiling", "saving", "step", "stepping", "stopping", "watchdog", "workdir"},
    "stepping": {"experiment", "hosts", "looping", "mesh", "step"},
    "together": {"experiment", "hosts", "memory", "mesh", "step", "stepping"},
    "evaluate": {"checkpoint", "config", "experiment", "hosts", "mesh", "scores"}
    | {"sources", "workdir"},
    "evaluation": {"answers", "assessment", "attacks", "calibration", "examples"}
    | {"experiment", "intervals", "losses", "predictions", "robustness", "scores", "views"},
    "robustness": {"answers", "assessment", "attacks", "corruptions", "examples"}
    | {"experiment"},
    "answers": {"attacks", "data", "examples", "experiment", "losses", "mesh"}
    | {"predictions", "views"},
    "examples": {"config", "data", "experiment", "sources"},
    "predict": {"batches", "clean", "decode", "experiment", "files", "mesh"},
    "search": {"batches", "config", "contact_sheet", "digesting", "experiment", "files"}
    | {"gallery", "importers", "neighbours", "predict", "provenance"},
    "prepare": {"batches", "clean", "decode", "importers", "writer"},
    "convert": {"importers", "writer"},
    "export": {"clean", "decode", "examples", "experiment", "export_facts", "files"}
    | {"formats", "models", "predict", "provenance"},
    "export_facts": {"decode", "digesting", "experiment", "formats", "logs", "weights"}
    | {"workdir"},
    "show": {"experiment", "mesh"},
    "hints": {"batches", "decode", "experiment"},
    "gather": {"batches", "calibration", "checkpoint", "clean", "evaluate", "evaluation"}
    | {"examples", "experiment", "files", "importers", "logs", "memory"}
    | {"predict", "predictions", "reporting", "saliency", "scores", "show", "study_folder"}
    | {"workdir"},
    "study_runs": {"cells", "checkpoint", "config", "evaluate", "experiment", "hosts"}
    | {"meter", "outcomes", "stopping", "study_folder", "summary"}
    | {"train", "workdir"},
}
# Nouns that may know others: the state's types, and what is on disk of them.
NOUNS = {
    "step": {"augment", "gradients", "losses", "metrics", "optimizers", "parts"}
    | {"schedules", "wrappers"},
    "gradients": {"losses", "parts"},
    "looping": {"step"},
    "augment": {"augment"},
    "clipping": {"optimizers"},
    "parts": {"optimizers"},
    "transfer": {"models"},
    "saliency": {"models"},
    "formats": {"formats", "models", "transfer", "weights"},
    "weights": {"weights"},
    "assessment": {"calibration", "intervals", "metrics", "predictions", "scores"},
    "scores": {"metrics"},
    "calibration": {"predictions", "scores"},
    "spread": {"intervals"},
    "comparison": {"intervals"},
    "evaluation_table": {"assessment", "calibration", "intervals", "scores"},
    "reporting": {"assessment", "calibration", "intervals", "meter", "reporting", "scores"}
    | {"metrics", "study_table"},
    "checkpoint": {"digesting", "hosts", "optimizers", "step"},
    "saving": {"checkpoint", "hosts", "step"},
    "digesting": {"optimizers"},
    "logs": {"meter", "run_records", "trackers"},
    "trackers": {"pictures", "scores"},
    "sources": {"datasets"},
    "importers": {"decode", "files", "importers"},
    "clean": {"decode"},
    "files": {"decode"},
    "gallery": {"features", "files"},
    "contact_sheet": {"clean", "decode", "files", "pictures"},
    "datasets": {"datasets"},
    "models": {"models"},
    "proof": {"logs", "workdir"},
    "subsets": {"batches"},
    "outcomes": {"logs", "workdir"},
    "compile_cache": {"provenance"},
    "sides": {"config", "outcomes", "study_folder", "workdir"},
    "study_folder": {"cells", "workdir"},
    "expected": {"outcomes", "spread", "workdir"},
    "summary": {"cells", "comparison", "metrics", "outcomes", "spread", "study_folder"},
    "workdir": {"config", "provenance"},
    "config": {"rules"},
}
# From a config to objects, each knowing those before it.
HINGE = ["selection", "data", "plan", "recipe", "initial", "teacher", "experiment"]


def module_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "jaxcls":
            found |= {alias.name for alias in node.names if not alias.name.startswith("__")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxcls."):
            found.add(node.module.split(".")[1])
    return found - SHARED


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_point_down(path):
    module = module_of(path)
    if module in COMMANDS:
        return
    if module in HINGE:
        later = HINGE[HINGE.index(module) :]
        assert not imported(path) & {*COMMANDS, *VERBS, *later}
    else:
        assert imported(path) <= VERBS.get(module, NOUNS.get(module, set()))


def test_argparse_is_in_the_commands_alone():
    using = {
        module_of(path) for path in PACKAGE.rglob("*.py") if "argparse" in path.read_text()
    }
    assert using == {"commands"}


def test_only_what_may_read_a_config_does():
    for path in PACKAGE.rglob("*.py"):
        if "ml_collections" in path.read_text():
            assert module_of(path) in {
                "config",
                "experiment",
                "plan",
                "recipe",
                "initial",
                "selection",
                "data",
                "workdir",
                "reproduce",
                "commands",
                "study_runs",
            }


def test_importing_starts_no_device_and_no_tensorflow():
    code = (
        "import sys, jaxcls\n"
        "from jaxcls import config, experiment, train, evaluate, predict, prepare, main\n"
        "from jaxcls.commands import export, report, search, study\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
