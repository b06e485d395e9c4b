"""The documents name packages and files that are there."""

import pathlib
import re

import pytest

from tests.conftest import ROOT
from tests.test_imports import ORDER

PATH = re.compile(r"\b([a-z]+/[\w/]+\.(?:py|md|png))\b")


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_files_that_are_named_are_there(name):
    named = set(PATH.findall((ROOT / name).read_text()))
    assert len(named) > 5
    invented = {path for path in named if pathlib.Path(path).stem in ("mine", "test_mine")}
    lost = {
        path
        for path in named - invented
        if not ((ROOT / path).exists() or (ROOT / "jaxcls" / path).exists())
    }
    assert not lost


def test_the_table_of_packages_is_their_order():
    text = (ROOT / "docs/architecture.md").read_text()
    listed = re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)
    assert listed == [name for name in ORDER if (ROOT / "jaxcls" / name).is_dir()]
