"""Provenance: what a start says of its packages and its command."""

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
