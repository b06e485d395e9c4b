"""Command lines: what is bad ends in one line and a status that says which kind."""

import os
import subprocess
import sys
import time

import pytest

from jaxcls.commands import cli
from jaxcls.errors import DivergedError, InputError, StoppedError


def message(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return str(caught.value)


def test_overrides_are_split_from_the_other_arguments():
    table = "{'bias$': 64}"
    given = ["--config=a.py", "--config.seed", "-1", "x", "--config.optim.lr=1e-3", "--a"]
    given += ["--config.data.eval=", f"--config.optim.lr_scales={table}"]
    rest, overrides = cli.split_overrides(given)
    assert rest == ["--config=a.py", "x", "--a"]
    assert overrides == {
        "seed": "-1",
        "optim.lr": "1e-3",
        "data.eval": "",
        "optim.lr_scales": table,
    }


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--config.seed"], "--config.seed has no value; write --config.seed=VALUE"),
        (["--config.seed", "--x"], "--config.seed has no value; write --config.seed=VALUE"),
        (
            ["--config.seed=1", "--config.seed", "2"],
            "--config.seed is given twice; give it once",
        ),
    ],
)
def test_an_override_without_a_value_or_with_two_is_refused(argv, said):
    assert message(cli.split_overrides, argv) == said


@pytest.fixture
def parser():
    made = cli.Parser("train", "Train.")
    made.add_argument("--config", required=True)
    made.add_argument("--workdir")
    made.add_argument("--run", action="append")
    made.add_argument("files", nargs="*")
    return made


HELP = "; jaxcls train --help shows what there is"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "the following arguments are required: --config" + HELP),
        (
            ["--work=b"],
            "unknown flag --work (did you mean '--workdir'?)" + HELP,
        ),
        (["--Config=b"], "unknown flag --Config (did you mean '--config'?)" + HELP),
        (["--config=a", "--xyz", "b"], "unknown flag --xyz" + HELP),
        (["--config=a", "--workdir"], "argument --workdir: expected one argument" + HELP),
        (["--config=a", "x", "--config", "a"], "--config is given twice; give it once"),
    ],
)
def test_a_wrong_command_line_is_an_input_error_that_names_the_help(parser, argv, said):
    assert message(parser.parse_args, argv) == said


def test_what_follows_two_dashes_is_no_flag(parser):
    found = parser.parse_args(["--config=a", "--", "-photo.jpg", "--epochs"])
    assert found.files == ["-photo.jpg", "--epochs"]


def test_a_flag_that_is_a_list_may_be_given_twice(parser):
    found = parser.parse_args(["--config=a", "--run=a", "--run=b", "x", "y"])
    assert (found.run, found.files) == (["a", "b"], ["x", "y"])


def test_help_leaves_with_0_and_states_the_exit_statuses(parser, capsys):
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--help"])
    assert caught.value.code == 0
    assert cli.EXIT_STATUS in capsys.readouterr().out


@pytest.mark.parametrize("text", ["\u0663", "9" * 19, "-1", "1.5", "", "x", "0"])
def test_anything_but_a_whole_number_is_refused(text):
    assert message(cli.whole_number, text, "--top", 1) == (
        f"--top={text} must be a whole number, at least 1; try --top=8"
    )
    assert cli.whole_number("12", "--top", 1) == 12


@pytest.mark.parametrize("text", ["-1", "nan", "", "x", "inf"])
def test_anything_but_a_finite_number_is_refused(text):
    assert message(cli.number, text, "--margin") == (
        f"--margin={text} must be a number, at least 0; try --margin=0.5"
    )
    assert cli.number("0.25", "--margin") == 0.25


def test_a_file_to_write_replaces_no_stream_no_run_and_no_link(tmp_path):
    def asked(text):
        return cli.new_file(str(text), "--json", "all.json")

    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    (tmp_path / "study").mkdir()
    (tmp_path / "study/plan.json").write_text("{}")
    os.mkfifo(tmp_path / "pipe")
    for text, said in {
        "/dev/stdout": "--json=/dev/stdout is a stream, and must be a file; try --json=all",
        "-": "--json=- is a stream",
        tmp_path / "pipe": "is a stream",
        tmp_path / "run/config.json": "belongs to the run in that folder; try --json=all.j",
        tmp_path / "run/metrics.jsonl": "belongs to the run",
        tmp_path / "study/study.json": "belongs to the study in that folder",
        tmp_path / "run": "is a folder",
        tmp_path / "no/a.json": "is in no folder that is there",
    }.items():
        assert said in message(asked, text)
    (tmp_path / "link").symlink_to(tmp_path / "real.json")
    assert asked(tmp_path / "link") == tmp_path / "real.json"
    assert asked(tmp_path / "run/all.json") == tmp_path / "run/all.json"
    assert asked(tmp_path / "config.json") == tmp_path / "config.json"


def leave(monkeypatch, capsys, outcome):
    """The status and the two outputs of a command whose main does `outcome`."""

    def main(argv):
        assert argv == ["--flag", "x"]
        if isinstance(outcome, BaseException):
            raise outcome
        print("said")
        return outcome

    monkeypatch.setattr(sys, "argv", ["program", "--flag", "x"])
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    return caught.value.code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (InputError("seed=-1\n  is   bad"), (2, "", "error: seed=-1 is bad\n")),
        (DivergedError("at step 3"), (3, "", "diverged: at step 3\n")),
        (KeyboardInterrupt(), (130, "", "interrupted\n")),
        (StoppedError("asked to"), (75, "", "stopped: asked to\n")),
        (4, (4, "said\n", "")),
    ],
)
def test_each_end_has_its_status_and_a_failure_is_one_line(
    monkeypatch, capsys, outcome, expected
):
    assert leave(monkeypatch, capsys, outcome) == expected


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda argv: 1 // 0)


@pytest.mark.parametrize(
    "printed", ["print", pytest.param("console.console().print", marks=pytest.mark.slow)]
)
def test_a_reader_that_left_is_no_error(printed):
    code = (
        "from jaxcls import console\n"
        "from jaxcls.commands import cli\n"
        f"cli.run(lambda argv: {printed}('line\\n' * 10**5) or 0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "outcome", "status"),
    [(60, "raise InputError('x')", 2), (60, "return 4", 4), (1, "return 0", 0)],
)
def test_a_thread_that_stays_does_not_keep_the_process(seconds, outcome, status):
    code = (
        "import threading, time\n"
        "from jaxcls.commands import cli\n"
        "from jaxcls.errors import InputError\n"
        "def work():\n"
        f"    time.sleep({seconds})\n"
        "    print('worked', flush=True)\n"
        "def main(argv):\n"
        "    threading.Thread(target=work).start()\n"
        "    print('said')\n"
        f"    {outcome}\n"
        "cli.run(main)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert time.monotonic() - began < 30
    assert done.returncode == status
    assert done.stdout == "said\n" + "worked\n" * (seconds == 1)
