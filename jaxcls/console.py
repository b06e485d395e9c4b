"""Tables as commands print them."""

import math
import sys

from rich import box
from rich.console import Console
from rich.table import Table


def console(width: int = 120) -> Console:
    """Where tables are printed, as they stand; `width` of a pipe, which has none itself."""
    wide = None if sys.stdout.isatty() else width
    return Console(width=wide, highlight=False, markup=False, emoji=False)


def table(title: str, *columns: str, texts: int = 1) -> Table:
    """An empty table whose first `texts` columns hold texts, and the others numbers."""
    made = Table(title=title, box=box.SIMPLE, title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        is_text = number < texts
        made.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text)
    return made


def as_text(value: float | None) -> str:
    """A figure of four decimals; "-" for one that is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"
