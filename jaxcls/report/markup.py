"""Builders of HTML. Only `tag` makes tags, so that every text is escaped."""

import html
from collections.abc import Iterable, Sequence

_VOID = {"img", "meta", "wbr"}
# The number of colours for runs; the style of the page defines them.
COLOURS = 8


class Markup(str):
    """Finished HTML. Any other text is escaped on use."""


def escape(text: object) -> Markup:
    """Returns text as HTML; `Markup` stays unchanged."""
    return text if isinstance(text, Markup) else Markup(html.escape(str(text)))


def join(parts: Iterable[object]) -> Markup:
    """Concatenates `parts`, and escapes each item that is no `Markup`."""
    return Markup("".join(escape(part) for part in parts))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Returns an element with its children.

    An attribute that is a Python keyword gets a final _, as in class_. Any other _ becomes
    a hyphen. An attribute of value None is left out.
    """
    given = {
        key.rstrip("_").replace("_", "-"): value
        for key, value in attributes.items()
        if value is not None
    }
    inside = "".join(f' {key}="{html.escape(str(value))}"' for key, value in given.items())
    if name in _VOID:
        return Markup(f"<{name}{inside}>")
    return Markup(f"<{name}{inside}>{join(children)}</{name}>")


def section(title: object, *children: object, level: int = 2, id_: str = "") -> Markup:
    """Returns a section with a heading; "" if all children are empty."""
    if not any(str(child) for child in children):
        return Markup("")
    return tag("section", tag(f"h{level}", title), *children, id_=id_ or None)


def note(text: object) -> Markup:
    """Returns a paragraph that explains a figure, or why it is missing."""
    return tag("p", text, class_="note")


def group(parts: Iterable[object], kind: str, name: str = "div") -> Markup:
    """Returns an element `name` of CSS class `kind` around the non-empty `parts`.

    Returns "" if all are empty.
    """
    shown = [part for part in parts if str(part)]
    return tag(name, *shown, class_=kind) if shown else Markup("")


def details(summary: str, *children: object) -> Markup:
    """Returns children that a click on the summary unfolds; "" if all are empty."""
    shown = any(str(child) for child in children)
    return tag("details", tag("summary", summary), *children) if shown else Markup("")


def table(
    heads: Sequence[object],
    rows: Iterable[Sequence[object]],
    caption: str,
    *,
    sorts: bool = False,
) -> Markup:
    """Returns a scrolling table, or "" without a row; a row's first cell is its header.

    sorts: whether a click on a column's header sorts the rows by that column.
    """
    named = [tag("button", head, type_="button") if sorts else head for head in heads]
    body = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest))
        for first, *rest in rows
    ]
    if not body:
        return Markup("")
    made = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *(tag("th", head, scope="col") for head in named))),
        tag("tbody", *body),
        class_="sorts" if sorts else None,
    )
    return scrolling(made, caption)


def scrolling(inner: Markup, label: str) -> Markup:
    """Returns a box that scrolls wide or long content, by keyboard too."""
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=label)


def swatch(run: int) -> Markup:
    """Returns a dot in the colour of run number `run`, from 0."""
    colour = f"background: var(--run{run % COLOURS + 1})"
    return tag("span", class_="swatch", style=colour, aria_hidden="true")
