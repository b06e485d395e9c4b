"""The progress bar of a run on a terminal."""

import sys
from collections.abc import Iterable
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

# Columns for what a terminal echoes.
_ECHO = 8


def started(start: int, steps: int) -> Progress:
    """Returns a bar at step `start` of `steps`, with one task, below the lines."""
    terminal = _Terminal(highlight=False, markup=False)
    bar = _Bar(
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _Pace(terminal),
        console=terminal,
        refresh_per_second=4,
        transient=True,
        redirect_stderr=sys.stderr.isatty(),
    )
    bar.add_task("", total=steps, completed=start, pace="compiling")
    bar.start()
    return bar


class _Pace(ProgressColumn):
    """The pace, or its last part, the time that is left, in less than 80 columns."""

    def __init__(self, terminal: Console) -> None:
        super().__init__(Column(no_wrap=True))
        self._terminal = terminal

    def render(self, task: Task) -> Text:
        pace = task.fields["pace"]
        return Text(pace if self._terminal.width >= 80 else pace.rpartition(", ")[2])


class _Terminal(Console):
    """A terminal whose cursor stays: a process that ends at once would leave it hidden."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class _Narrow(NamedTuple):
    """A renderable with room at its end for the ^C that a terminal echoes there.

    An echo that breaks the line would leave a bar there, above the next one.
    """

    inside: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        narrow = options.update_width(max(1, options.max_width - _ECHO))
        return console.render(self.inside, narrow)


class _Bar(Progress):
    def get_renderables(self) -> Iterable[RenderableType]:
        return map(_Narrow, super().get_renderables())
