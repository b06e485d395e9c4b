"""The documents name packages and files that are there, and every entry of a table."""

import importlib.util
import pathlib
import re

import pytest
import yaml

from jaxcls import commands
from jaxcls.config.knobs import KNOBS
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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_lead_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        if not anchor:
            continue
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
        slugs = {re.sub(r"[^\w ]", "", h).lower().replace(" ", "-") for h in headings}
        assert anchor in slugs, target


def test_the_readme_is_short_and_every_page_is_in_the_menu():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250
    menu = re.findall(r"[\w/]+\.md", yaml.safe_dump(_menu()))
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]]
    assert sorted(menu) == sorted(pages)


def _menu():
    text = (ROOT / "mkdocs.yml").read_text()
    return yaml.safe_load(text[text.index("nav:") :])["nav"]


@pytest.fixture(scope="module")
def reference():
    """The generated pages by name."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    made = {name: page() for name, page in hooks.GENERATED.items()}
    pages = " ".join(page.read_text() for page in PAGES)
    assert set(re.findall(r"<!-- generated: (\w+) -->", pages)) == set(made)
    assert hooks.on_page_markdown("a <!-- generated: keys --> b") == f"a {made['keys']} b"
    return made, hooks.TABLES


def test_the_reference_has_every_key_entry_and_verb(reference):
    made, tables = reference
    assert all(f"| `{key}`" in made["keys"] for key in KNOBS)
    assert all(f"## {verb}\n" in made["commands"] for verb in commands.VERBS)
    for _, table in tables.values():
        for name in table:
            assert re.search(rf"^`{name}[(`]", made["entries"], re.MULTILINE), name
    assert "`cutmix(alpha" in made["entries"]
    described = re.findall(r"^:   (.*)$", made["entries"], re.MULTILINE)
    assert all(len(text) > 10 for text in described)
