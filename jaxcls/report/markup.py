"""HTML in which every text is escaped, because only `tag` makes tags."""

import html
from collections.abc import Iterable, Sequence

_VOID = {"img", "meta", "wbr"}
# How many colours there are for runs; the page gives them their values.
COLOURS = 8


class Markup(str):
    """HTML as it is to stand in the page; any other text is escaped where it is used."""


def escape(text: object) -> Markup:
    """Text as HTML; what is HTML already stays."""
    return text if isinstance(text, Markup) else Markup(html.escape(str(text)))


def join(parts: Iterable[object]) -> Markup:
    """Concatenate parts; each is escaped unless it is HTML."""
    return Markup("".join(escape(part) for part in parts))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. An attribute ends in _ where Python has the word; _ within is a hyphen.

    None gives no attribute at all.
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
    """A section under a heading; nothing where it would be empty."""
    if not any(str(child) for child in children):
        return Markup("")
    return tag("section", tag(f"h{level}", title), *children, id_=id_ or None)


def note(text: object) -> Markup:
    """A paragraph that explains a figure, or why there is none."""
    return tag("p", text, class_="note")


def group(parts: Iterable[object], kind: str, name: str = "div") -> Markup:
    """An element `name` of CSS class `kind` around the parts that are not empty.

    Returns "" if all are.
    """
    shown = [part for part in parts if str(part)]
    return tag(name, *shown, class_=kind) if shown else Markup("")


def details(summary: str, *children: object) -> Markup:
    """Children that a click on the summary unfolds; "" where there is none."""
    shown = any(str(child) for child in children)
    return tag("details", tag("summary", summary), *children) if shown else Markup("")


def table(
    heads: Sequence[object],
    rows: Iterable[Sequence[object]],
    caption: str,
    *,
    sorts: bool = False,
) -> Markup:
    """A table that scrolls; the first cell of a row is its head. "" without a row.

    sorts: whether a click on the head of a column sorts by it.
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
    """A box that scrolls, by keys too, where what is in it is wider or longer."""
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=label)


def swatch(run: int) -> Markup:
    """The colour in which run number `run`, from 0, is drawn."""
    colour = f"background: var(--run{run % COLOURS + 1})"
    return tag("span", class_="swatch", style=colour, aria_hidden="true")
