"""What benchmarks print: medians with their spread, tables, and what machine it was."""

import os
import statistics
from collections.abc import Iterable, Sequence

import jax


def spread(values: Iterable[float], form: str = ".2f") -> str:
    """The median of `values` with the least and the most: ``1.31 (1.20 to 1.57)``."""
    found = list(values)
    each = (statistics.median(found), min(found), max(found))
    median, least, most = (format(value, form) for value in each)
    return f"{median} ({least} to {most})"


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


def machine() -> str:
    """The devices, the version of jax, and how much else this machine does."""
    devices = jax.devices()
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return (
        f"{len(devices)} {devices[0].device_kind}, {os.cpu_count()} cores, jax"
        f" {jax.__version__}, load {load}"
    )
