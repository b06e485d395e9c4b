"""Tables as commands print them."""

import errno
import math

import pytest

from jaxcls import console


def test_texts_stand_left_and_numbers_right_in_a_pipe_of_a_known_width(capsys):
    made = console.table("[b] :x:", "name", "n")
    made.add_row("a[b] :x:", "7")
    console.console(60).print(made)
    title, header, _, row = [
        line for line in capsys.readouterr().out.split("\n") if line.strip()
    ]
    assert title.strip() == "[b] :x:"
    assert header.split() == ["name", "n"]
    assert row.split() == ["a[b]", ":x:", "7"]
    assert header.rstrip().index("n", header.index("name") + 4) == row.index("7")


def test_a_figure_has_four_decimals():
    values = 0.12345, 2, None, math.nan, -math.inf
    assert [*map(console.as_text, values)] == ["0.1235", "2.0000", "-", "-", "-"]


def test_a_cell_of_anybody_moves_no_cursor(capsys):
    made = console.table("t", "name")
    made.add_row("\x1b[2J\x1b]0;title\x07cat\u202egod")
    console.console(60).print(made)
    out = capsys.readouterr().out
    assert "\\x1b[2J\\x1b]0;title\\x07cat\\u202egod" in out
    assert "\x1b" not in out


def test_a_disks_error_is_not_taken_for_a_closed_terminal(tmp_path, monkeypatch):
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr("sys.stdout", file)
        with pytest.raises(OSError, match="Input/output"), console.outlived():
            raise OSError(errno.EIO, "Input/output error")
        monkeypatch.undo()
