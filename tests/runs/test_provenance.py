"""Provenance: what a start says of its packages and its command."""

import importlib.metadata
import importlib.util
import sys

import pytest

from jaxcls.runs import provenance


@pytest.mark.parametrize(
    ("module", "script", "recorded"),
    [
        (None, "/venv/bin/jaxcls", "jaxcls"),
        ("jaxcls.__main__", "/checkout/jaxcls/__main__.py", "jaxcls"),
        ("jaxcls.main", "/checkout/jaxcls/main.py", "python -m jaxcls.main"),
    ],
)
def test_a_command_is_recorded_as_it_is_typed(monkeypatch, module, script, recorded):
    spec = importlib.util.find_spec(module) if module else None
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", [script, "train", "--dry_run"])
    assert provenance._command() == [*recorded.split(), "train", "--dry_run"]


def test_every_package_is_named_with_its_version_as_the_library_says():
    found = importlib.metadata.distributions()
    pairs = {f"{each.name}=={each.version}" for each in found}
    assert set(provenance._packages()) == pairs
    assert len(pairs) > 20


def test_the_headers_of_a_package_end_where_its_readme_begins(tmp_path):
    folder = tmp_path / "odd-1.5.dist-info"
    folder.mkdir()
    text = "Metadata-Version: 2.1\nName: odd\nVersion: 1.5\n\nVersion: 9\n\nName: other\n"
    (folder / "METADATA").write_text(text)
    (found,) = importlib.metadata.distributions(path=[str(tmp_path)])
    headers = provenance._headers(found)
    assert (headers["Name"], headers["Version"]) == ("odd", "1.5")
    assert headers.get_payload() == ""


def test_a_package_of_the_old_form_is_read_too(tmp_path):
    folder = tmp_path / "old.egg-info"
    folder.mkdir()
    (folder / "PKG-INFO").write_text("Name: old\nVersion: 0.1\n")
    (tmp_path / "older.egg-info").write_text("Name: older\nVersion: 0.0.1\n")
    found = importlib.metadata.distributions(path=[str(tmp_path)])
    headers = map(provenance._headers, found)
    versions = {each["Name"]: each["Version"] for each in headers}
    assert versions == {"old": "0.1", "older": "0.0.1"}
