"""``jaxcls VERB``: the list of verbs, a typo, the ways to start it, what is refused."""

import pathlib
import pkgutil
import subprocess
import sys
import tomllib

import pytest

from jaxcls import commands
from tests.conftest import ROOT


def test_without_a_verb_each_is_listed_on_a_line(capsys):
    for argv in ([], ["--help"], ["-h"]):
        assert commands.main(argv) == 0
        listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
        assert listed[1:-1] == list(commands.VERBS)


def test_each_verb_is_a_file_and_each_file_a_verb():
    files = {file.stem for file in pathlib.Path(commands.__file__).parent.glob("*.py")}
    assert files - {"__init__", "cli", "dry_run"} == set(commands.VERBS)


def test_an_unknown_verb_is_one_line_with_the_nearest_name(command):
    done = command("evalute", "--workdir=x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: unknown verb 'evalute' (did you mean 'evaluate'?); known: evaluate, export,"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", commands.VERBS)
def test_the_help_of_a_verb_names_it_and_the_exit_statuses(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        commands.main([verb, "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: jaxcls {verb} ")
    assert "75 stopped on request after saving" in said


def test_the_console_script_and_both_modules_are_one_program(monkeypatch, capsys):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    script = pkgutil.resolve_name(project["scripts"]["jaxcls"])
    monkeypatch.setattr(sys, "argv", ["/bin/jaxcls", "train", "--dry_run"])
    with pytest.raises(SystemExit, match="2"):
        script()
    said = capsys.readouterr().err
    assert said == (
        "error: the following arguments are required: --config; jaxcls train --help shows"
        " what there is\n"
    )
    for program in (["jaxcls", "train"], ["jaxcls.main"]):
        done = subprocess.run(
            [sys.executable, "-m", *program, "--dry_run"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (2, said)


def test_a_list_of_verbs_and_the_help_of_train_import_no_jax():
    code = (
        "import sys\n"
        "from jaxcls.__main__ import main\n"
        "sys.argv = ['jaxcls', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as left: assert not left.code\n"
        "assert not {'jax', 'numpy'} & set(sys.modules)\n"
    )
    for argv in ([], ["train", "--help"]):
        subprocess.run(
            [sys.executable, "-c", code, *argv],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
