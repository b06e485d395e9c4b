"""Files of JSON."""

import json
import math

import pytest

from jaxcls import jsonfile
from jaxcls.errors import InputError


def test_what_json_cannot_say_is_null_and_the_rest_comes_back(tmp_path):
    file = tmp_path / "a.json"
    jsonfile.write(file, {"a": (1, math.inf), "b": [{"c": math.nan}, "ä", None], "d": 0.1})
    text = file.read_text(encoding="utf-8")
    assert jsonfile.read(file) == json.loads(text)
    assert json.loads(text) == {"a": [1, None], "b": [{"c": None}, "ä", None], "d": 0.1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_is_not_there_says_nothing(tmp_path):
    (tmp_path / "file").write_text("{}")
    assert jsonfile.read(tmp_path / "none.json") is None
    assert jsonfile.read(tmp_path / "file" / "none.json") is None


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe\x00", b"[" * 100_000])
def test_what_cannot_be_read_is_named_on_one_line(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(InputError) as refused:
        jsonfile.read(file)
    assert str(refused.value).startswith(f"{file} cannot be read: ")
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match=r"cannot be read: .*directory"):
        jsonfile.read(tmp_path)
