"""A file is replaced whole or not at all; what JSON cannot hold."""

import json
import math

import pytest

from jaxcls import atomic
from jaxcls.errors import InputError


@pytest.mark.parametrize(("mode", "new"), [("w", "né\n"), ("wb", b"n\xe9\n")])
def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path, mode, new):
    file = tmp_path / "file"
    file.write_text("old")
    with file.open() as reader:
        with atomic.writing(file, mode) as out:
            out.write(new)
            assert file.read_text() == "old"
        assert reader.read() == "old"
    assert file.read_bytes() == (new.encode() if mode == "w" else new)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left")])
def test_where_the_block_fails_the_old_file_stays_and_nothing_is_left(tmp_path, error):
    file = tmp_path / "file"
    file.write_text("old")

    def stopped():
        with atomic.writing(file) as out:
            out.write("new")
            raise error

    says = rf"^{file} cannot be written \(No space left\); make room, or"
    says = "^$" if isinstance(error, KeyboardInterrupt) else says
    with pytest.raises((KeyboardInterrupt, InputError), match=says):
        stopped()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    with atomic.folder(tmp_path / "in" / "new", "--out") as inside:
        (inside / "file").write_text("text")
        assert not (tmp_path / "in" / "new").exists()
    assert (tmp_path / "in" / "new" / "file").read_text() == "text"
    with (
        pytest.raises(InputError, match=r"--out=.*new exists, and is not replaced"),
        atomic.folder(tmp_path / "in" / "new", "--out"),
    ):
        pytest.fail("it exists")

    def fails():
        with atomic.folder(tmp_path / "other", "--out") as inside:
            (inside / "file").write_text("text")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [each.name for each in tmp_path.iterdir()] == ["in"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no/x cannot be written \(No such file"):
        atomic.write(tmp_path / "no" / "x", "text")


def test_what_json_cannot_say_is_null_and_the_rest_comes_back(tmp_path):
    file = tmp_path / "a.json"
    atomic.write_json(
        file, {"a": (1, math.inf), "b": [{"c": math.nan}, "ä", None], "d": 0.1}
    )
    text = file.read_text(encoding="utf-8")
    assert atomic.read_json(file) == json.loads(text)
    assert json.loads(text) == {"a": [1, None], "b": [{"c": None}, "ä", None], "d": 0.1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe\x00", b"[" * 100_000])
def test_what_cannot_be_read_is_named_on_one_line_and_what_is_not_there_is_none(
    tmp_path, content
):
    file = tmp_path / "a.json"
    assert atomic.read_json(file) is None
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{file} cannot be read: .*$"):
        atomic.read_json(file)
    assert atomic.read_json(file / "none.json") is None
    with pytest.raises(InputError, match=r"cannot be read: .*directory"):
        atomic.read_json(tmp_path)
