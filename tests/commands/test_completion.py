"""``jaxcls completion``: each shell, asked by a key press, names what there is."""

import os
import pty
import re
import select
import shutil
import subprocess
import time

import pytest

from jaxcls import commands
from jaxcls.errors import InputError

VERBS = {"evaluate", "export"}
KEYS = {"--config.optim.lr", "--config.optim.lr_per", "--config.optim.lr_scales"}


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """Writes the script of a shell to a file, and returns its path."""
    folder = tmp_path_factory.mktemp("completion")

    def write(shell, capsys):
        assert commands.main(["completion", shell]) == 0
        file = folder / f"_jaxcls.{shell}"
        file.write_text(capsys.readouterr().out)
        return file

    return write


def of(shell):
    return pytest.mark.skipif(not shutil.which(shell), reason=f"there is no {shell}")


def test_bash_completes_verbs_flags_and_keys(script, capsys):
    file = script("bash", capsys)

    def asked(*words):
        code = (
            f"source {file}; COMP_WORDS=({' '.join(words)});"
            f' COMP_CWORD={len(words) - 1}; _jaxcls; printf "%s\\n" "${{COMPREPLY[@]}}"'
        )
        found = subprocess.run(["bash", "-uc", code], capture_output=True, text=True)
        assert not found.stderr
        return set(found.stdout.split())

    assert asked("jaxcls", "e") == VERBS
    assert asked("jaxcls", "train", "--config.optim.lr") == {f"{k}=" for k in KEYS}
    assert asked("jaxcls", "train", "--dry") == {"--dry_run"}
    assert asked("jaxcls", "predict", "--config.data.d") == {"--config.data.dir="}
    assert asked("jaxcls", "train", "=", "conf") == set()  # Files are bash's own.
    assert asked("jaxcls", "evaluate", "--config.optim.lr") == set()


@pytest.mark.slow
@of("fish")
def test_fish_completes_verbs_flags_and_keys(script, capsys):
    file = script("fish", capsys)

    def asked(line):
        code = f"source {file}; complete -C '{line}'"
        found = subprocess.run(["fish", "-c", code], capture_output=True, text=True)
        assert not found.stderr
        return {row.partition("\t")[0] for row in found.stdout.splitlines()}

    assert asked("jaxcls e") == VERBS
    assert asked("jaxcls train --config.optim.lr") == KEYS
    assert asked("jaxcls train --dry") == {"--dry_run"}


@pytest.mark.slow
@of("zsh")
def test_zsh_completes_verbs_flags_and_keys(script, capsys, tmp_path):
    file = script("zsh", capsys)
    begin = f"autoload -U compinit; compinit -u -d {tmp_path}/dump; source {file}; PS1='> '"

    def asked(line):
        """Returns what an interactive zsh shows after TAB, in 120 columns."""
        terminal, its_end = pty.openpty()
        variables = os.environ | {"TERM": "dumb", "COLUMNS": "120", "LINES": "40"}
        process = subprocess.Popen(
            ["zsh", "-f", "-i"],
            stdin=its_end,
            stdout=its_end,
            stderr=its_end,
            env=variables,
            start_new_session=True,
        )
        os.close(its_end)
        os.write(terminal, f"{begin}; echo RE''ADY\n".encode())
        said = _until(terminal, "READY\r\n")
        os.write(terminal, f"{line}\t".encode())
        said = _until(terminal, "")
        process.kill()
        process.wait()
        os.close(terminal)
        return said

    assert set(re.findall(r"\w+", asked("jaxcls e"))) >= VERBS
    assert (
        set(re.findall(r"--config[\w.]+", asked("jaxcls train --config.optim.lr"))) >= KEYS
    )
    assert "--dry_run" in asked("jaxcls train --dry")


def _until(terminal, text, seconds=20.0, quiet=1.0):
    """Reads a terminal until it says `text`, or for "" until it is quiet."""
    said, end = "", time.monotonic() + seconds
    while time.monotonic() < end:
        ready, _, _ = select.select([terminal], [], [], quiet)
        if ready:
            said += os.read(terminal, 4096).decode(errors="replace")
        if (text and text in said) or (not text and not ready and said):
            return said
    raise AssertionError(said)


def test_another_shell_is_refused():
    with pytest.raises(InputError, match=r"unknown shell 'tcsh'.*known: bash, fish, zsh"):
        commands.main(["completion", "tcsh"])
