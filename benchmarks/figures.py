"""What benchmarks print as tables, and how a cost grows."""

import math
import statistics
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines of columns: the first to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The k of cost ~ size**k by least squares of logarithms: 1 is linear, 0 is flat."""
    x, y = [list(map(math.log, column)) for column in (sizes, costs)]
    return statistics.linear_regression(x, y).slope
