"""Plug-ins: what is imported, what counts as their source, and what is refused."""

import hashlib
import importlib
import re
import sys

import pytest

from jaxcls.config import plugins
from jaxcls.errors import InputError

TABLE = "MODELS = {'mine': dict}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory for plug-ins, whose modules are forgotten afterwards."""
    before, loaded = {*sys.modules}, dict(plugins._LOADED)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in {*sys.modules} - before:
        del sys.modules[name]
    plugins._LOADED.clear()
    plugins._LOADED.update(loaded)


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_file_and_what_it_imports_of_its_folder_are_its_source(folder):
    code = folder / "code"
    (code / "parts").mkdir(parents=True)
    (code / "plug_one.py").write_text("import json, helper_one, parts.deep\n" + TABLE)
    (code / "helper_one.py").write_text("X = 1\n")
    (code / "parts/__init__.py").write_text("")
    (code / "parts/deep.py").write_text("Y = 2\n")
    (code / "other.py").write_text("Z = 3\n")
    found = plugins.load("code/plug_one.py", "--plugins")
    assert found.tables == {"MODELS": {"mine": dict}}
    assert found.digests == {
        "plug_one/helper_one.py": digest("X = 1\n"),
        "plug_one/parts/__init__.py": digest(""),
        "plug_one/parts/deep.py": digest("Y = 2\n"),
        "plug_one/plug_one.py": digest("import json, helper_one, parts.deep\n" + TABLE),
    }
    assert str(code) not in sys.path
    # Once a process: the same module and the same source.
    assert plugins.load("./code/../code/plug_one.py", "--plugins") == found


def test_a_file_is_looked_up_beside_the_config_first(folder):
    (folder / "configs").mkdir()
    (folder / "configs/plug_two.py").write_text(TABLE)
    (folder / "plug_two.py").write_text("raise RuntimeError\n")
    found = plugins.load("plug_two.py", "config.plugins", beside=str(folder / "configs"))
    assert found.digests == {"plug_two/plug_two.py": digest(TABLE)}


def test_installed_packages_are_no_source_of_a_file(folder, monkeypatch):
    packages = folder / "venv/site-packages"
    packages.mkdir(parents=True)
    (packages / "installed_one.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(packages)
    (folder / "plug_three.py").write_text("import installed_one\n" + TABLE)
    assert [*plugins.load("plug_three.py", "k").digests] == ["plug_three/plug_three.py"]


def test_a_package_is_all_its_modules_and_an_entry_point_names_one(folder, monkeypatch):
    (folder / "packed").mkdir()
    (folder / "packed/__init__.py").write_text("from packed import nets\n")
    (folder / "packed/nets.py").write_text("from packed import layers\n" + TABLE)
    (folder / "packed/layers.py").write_text("L = 1\n")
    about = folder / "packed-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: packed\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[jaxcls.plugins]\nnice = packed.nets\n")
    (about / "RECORD").write_text("packed/__init__.py,,\npacked/nets.py,,\n")
    monkeypatch.syspath_prepend(folder)
    assert "packed" not in sys.modules
    by_name = plugins.load("nice", "--plugins")
    assert sorted(by_name.sources) == [
        "packed/__init__.py",
        "packed/layers.py",
        "packed/nets.py",
        "packed/version",
    ]
    assert by_name.sources["packed/version"] == "1.0"
    assert plugins.load("packed.nets", "--plugins") == by_name


def test_several_add_up_and_may_not_give_one_name_twice(folder):
    (folder / "plug_a.py").write_text(TABLE)
    (folder / "plug_b.py").write_text("LOSSES = {'mine': dict}\n")
    (folder / "plug_c.py").write_text(TABLE)
    both = plugins.load(" plug_a.py, plug_b.py ,", "k")
    assert both.tables == {"MODELS": {"mine": dict}, "LOSSES": {"mine": dict}}
    assert sorted(both.sources) == ["plug_a/plug_a.py", "plug_b/plug_b.py"]
    with pytest.raises(InputError, match=r"k=plug_c.py: 'mine' is in MODELS of another"):
        plugins.load("plug_a.py,plug_c.py", "k")
    assert plugins.load("", "k") == plugins.NONE


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.py", None, "k=none.py is not a file; give a path from here"),
        ("no_such_module", None, "k=no_such_module: ModuleNotFoundError: No module named"),
        ("bad_a.py", "x = 1\n1 / 0\n", "k=bad_a.py: line 2: ZeroDivisionError: division"),
        ("bad_b.py", "def f(:\n", "k=bad_b.py: line 1: SyntaxError"),
        ("bad_c.py", "X = 1\n", "k=bad_c.py holds none of the tables MODELS, OPTIMIZERS"),
        ("bad_d.py", "LOSSES = ['a']\n", "k=bad_d.py: LOSSES must be a dict from names"),
        ("bad_e.py", "LOSSES = {'a': 1}\n", "k=bad_e.py: 'a' of LOSSES must be a function"),
        (
            "bad_h.py",
            "FORMATS = {'a': dict}\n",
            "k=bad_h.py: 'a' of FORMATS lacks ABOUT; a",
        ),
        ("bad_f.py", "LOSSES = {'a b': dict}\n", "k=bad_f.py: LOSSES must be a dict"),
        ("json.py", TABLE, "k=json.py: json is the name of another module; give the file"),
        ("bad-g.py", TABLE, "k=bad-g.py: the name of a file must be one in Python, net"),
        ("jaxcls.models", None, "k=jaxcls.models is not a plug-in; give a module of your"),
    ],
)
def test_what_is_no_plug_in_is_refused_in_one_line(folder, name, text, message):
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        plugins.load(name, "k")
    assert "\n" not in str(error.value)


def test_source_that_a_run_recorded_must_be_given_and_the_same():
    given = plugins.Plugins({}, {"net/net.py": "X = 1\n", "net/more.py": ""})
    plugins.check_same(given.digests, {}, "", "run")
    plugins.check_same(given.digests, {"net/net.py": digest("X = 1\n")}, "", "run")
    lost = {"net/net.py": digest("X = 1\n"), "own/own.py": "0"}
    with pytest.raises(InputError, match=r"a plug-in \(own/own.py\); .* --plugins='a.py'"):
        plugins.check_same(given.digests, lost, "a.py", "run")
    with pytest.raises(InputError, match=r"run: net/net.py of its plug-in changed: sha256"):
        plugins.check_same(given.digests, {"net/net.py": digest("X = 2\n")}, "", "run")
