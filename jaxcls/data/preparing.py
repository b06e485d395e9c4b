"""Prepares a dataset: a folder or archive of images -> a TFDS dataset in ArrayRecord."""

import array
import csv
import dataclasses
import functools
import io
import operator
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from rich.progress import track
from rich.table import Table

from jaxcls import atomic, console
from jaxcls.config.plugins import NONE, Plugins
from jaxcls.data import published, writer
from jaxcls.data.batches import in_order
from jaxcls.data.clean import CHANGES, Shrink, clean, quiet
from jaxcls.data.decode import DecodeError
from jaxcls.data.example import Example, serialize
from jaxcls.data.importers import open_source
from jaxcls.data.importers.findings import Kept, findings
from jaxcls.data.importers.listing import ImageSource, Listing
from jaxcls.data.importers.names import check as check_names
from jaxcls.data.importers.parts import name_hash
from jaxcls.errors import InputError, shown

REJECTED = "rejected.csv"
MOST_ROWS = 30  # Rows of classes in a table; ImageNet has a thousand.


class Options(NamedTuple):
    """The flags of `prepare`; max_bad: the largest accepted number of rejected files."""

    source: pathlib.Path
    name: str
    val_fraction: float
    test_fraction: float
    max_bad: int
    shrink: Shrink | None
    threads: int


@dataclasses.dataclass
class Outcome:
    """What became of the files: rejected ones, the contents, the examples per split.

    sizes: the (height, width) of the images. stored: `Stored` of each key of CHANGES.
    """

    rejected: list[tuple[str, str]]
    contents: writer.Contents
    kept: dict[str, Kept] = dataclasses.field(default_factory=dict)
    sizes: set[tuple[int, int]] = dataclasses.field(default_factory=set)
    stored: dict[str, "Stored"] = dataclasses.field(default_factory=dict)


class Stored(NamedTuple):
    """Files that are stored anew: the first one, their number, bytes before and after."""

    first: str
    files: int = 0
    before: int = 0
    after: int = 0


class _Made(NamedTuple):
    """A record; digest: of `Example.digest`. The rest is as `clean` gives it.

    before, after: bytes of the file, and as it is stored.
    """

    record: bytes
    digest: bytes
    pixels: int
    size: tuple[int, int]
    change: str
    before: int
    after: int


def prepare(options: Options, root: pathlib.Path, plugins: Plugins = NONE) -> pathlib.Path:
    """Writes the dataset of `options` below `root`; returns its folder.

    plugins: their importers are tried before ours. Raises `InputError` for a bad source, or
    for more than max_bad rejected files. In the second case, only the list of rejected
    files is left.
    """
    target = root / options.name / writer.VERSION
    with writer.whole(target) as folder, quiet():
        scratch = folder / "scratch"
        scratch.mkdir()
        fractions = options.val_fraction, options.test_fraction
        found = open_source(
            options.source, scratch, fractions[0], plugins, test_fraction=fractions[1]
        )
        counts = {split: len(listing.labels) for split, listing in found.splits.items()}
        published.check(options.name, counts, "--name")
        check_names(found.class_names)
        classes = f"{len(found.class_names)} classes"
        say(f"{options.source}: {found.kind}, {classes}, {pairs(counts)}")
        show(classes_of(found))
        if found.left_out:
            show(left_out_of(found))
        contents = writer.Contents(folder, options.name)
        outcome = Outcome(found.rejected, contents)
        for split, listing in found.splits.items():
            contents.write_split(split, _records(split, listing, options, outcome))
        shutil.rmtree(scratch)
        _settle_rejected(target.parent / REJECTED, options, outcome)
        _check_none_lost(found, outcome)
        if outcome.stored:
            show(stored_of(outcome))
        sizes, names = outcome.sizes, found.class_names
        one_size = sizes.pop() if len(sizes) == 1 else (None, None)
        features = writer.features(names, (*one_size, found.channels))
        about = f"Prepared by jaxcls from {found.kind}."
        contents.write_info(about, features, ("image", "label"))
        contents.write_manifest(
            found.kind,
            names,
            rejected=len(outcome.rejected),
            val_fraction=fractions[0],
            test_fraction=fractions[1],
            shrink=options.shrink._asdict() if options.shrink else None,
        )
    notes = findings(found.class_names, outcome.kept)
    for note in (*found.notes, *_grown(outcome), *notes):
        say(f"note: {note}")
    return target


def _records(
    split: str, listing: Listing, options: Options, outcome: Outcome
) -> Iterator[bytes]:
    """Yields the serialised records of a split, in the order of a hash of their names.

    Any slice of a split, such as train[:90%], is therefore a fair sample of its classes.
    """
    hashes = [name_hash(name) for name in listing.names]
    order = np.argsort(np.array(hashes, np.uint64), kind="stable").tolist()
    make = functools.partial(_example, listing, options.shrink)
    examples = track(
        in_order(make, order, options.threads),
        f"preparing {split}",
        total=len(order),
        console=console.console(),
        disable=not sys.stdout.isatty(),
    )
    rows, seen, outside = array.array("q"), array.array("q"), array.array("d")
    for row, made in zip(order, examples, strict=True):
        name = os.fsdecode(listing.names[row])
        if isinstance(made, str):
            outcome.rejected.append((name, made))
            continue
        outcome.contents.add(made.digest, int(listing.labels[row]))
        outcome.sizes.add(made.size)
        if made.change:
            first, *sums = outcome.stored.get(made.change, Stored(name))
            more = 1, made.before, made.after
            outcome.stored[made.change] = Stored(first, *map(operator.add, sums, more))
        rows.append(row)
        seen.append(made.pixels)
        outside.append(1 - min(made.size) / max(made.size))
        yield made.record
    labels = np.asarray(outcome.contents.labels[split])
    outcome.kept[split] = Kept(
        listing.names[rows], labels, np.asarray(seen), np.asarray(outside)
    )


def _example(listing: Listing, shrink: Shrink | None, row: int) -> _Made | str:
    """Returns a record, or the reason of a rejection."""
    try:
        data = listing.read(row)
        cleaned = clean(data, shrink)
    except (DecodeError, OSError) as error:
        return str(error)
    label = int(listing.labels[row])
    example = Example(bytes(listing.names[row]), cleaned.data, label)
    size, sizes = (cleaned.height, cleaned.width), (len(data), len(cleaned.data))
    record, digest = serialize(example), example.digest()
    return _Made(record, digest, cleaned.pixels, size, cleaned.change, *sizes)


def _settle_rejected(path: pathlib.Path, options: Options, outcome: Outcome) -> None:
    """Writes rejected.csv; raises `InputError` for over max_bad rows or an empty split."""
    path.unlink(missing_ok=True)
    if not outcome.rejected:
        return
    outcome.rejected.sort()
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerows([("path", "reason"), *outcome.rejected])
    with atomic.writing(path, "wb") as file:
        file.write(table.getvalue().encode("utf-8", "surrogateescape"))
    first, reason = outcome.rejected[0]
    n = len(outcome.rejected)
    found = (
        f"{n:,} of the files of {options.source} cannot be used, such as {shown(first)}:"
        f" {reason}"
    )
    if n > options.max_bad:
        raise InputError(
            f"{found}; all of them are in {path}; put them right, or leave them out with"
            f" --max_bad={n}"
        )
    say(f"note: {found}; all of them are in {path}")
    for split, kept in outcome.kept.items():
        if not kept.labels.size:
            raise InputError(f"{options.source}: no image of split {split} can be used")


def _check_none_lost(found: ImageSource, outcome: Outcome) -> None:
    """Raises `InputError` for a class with files none of which can be used."""
    listed = {k for listing in found.splits.values() for k in listing.labels.tolist()}
    kept = {k for split in outcome.kept.values() for k in split.labels.tolist()}
    if lost := sorted(listed - kept):
        raise InputError(
            f"no image of class {shown(found.class_names[lost[0]])} can be used; put its"
            " files right, or take all of them away"
        )


def classes_of(found: ImageSource) -> Table:
    """Returns the table of classes: the files in each split, their share of the class."""
    names = found.class_names
    counts = np.array(
        [np.bincount(x.labels, minlength=len(names)) for x in found.splits.values()]
    )
    made = console.table("", "class", *found.splits)

    def add(name: str, column: np.ndarray) -> None:
        total = max(1, column.sum())
        shares = (
            f"{count:,}" if split == "train" else f"{count:,} ({count / total:.0%})"
            for split, count in zip(found.splits, column.tolist(), strict=True)
        )
        made.add_row(name, *shares)

    shown_rows = len(names) if len(names) <= MOST_ROWS else MOST_ROWS - 1
    for number, name in enumerate(names[:shown_rows]):
        add(name, counts[:, number])
    if shown_rows < len(names):
        rest = len(names) - shown_rows
        add(f"{rest:,} more classes", counts[:, shown_rows:].sum(axis=1))
    return made


def left_out_of(found: ImageSource) -> Table:
    """Returns the table of what is left out as no image: reason, an example, the number."""
    made = console.table("", "left out", "such as", "entries", texts=2)
    for why, paths in found.left_out.items():
        made.add_row(why, shown(paths[0]), f"{len(paths):,}")
    return made


def stored_of(outcome: Outcome) -> Table:
    """Returns the table of files that are stored anew: how, an example, what they take."""
    made = console.table(
        "", "stored anew", "such as", "files", "bytes", "of before", texts=2
    )
    for change, how in CHANGES.items():
        if change in outcome.stored:
            first, files, before, after = outcome.stored[change]
            times = f"{after / before:.2f} times"
            made.add_row(how, shown(first), f"{files:,}", f"{after:,}", times)
    return made


def _grown(outcome: Outcome) -> list[str]:
    """Returns a note if upright files are PNGs of over twice the bytes of their JPEGs."""
    if "turned" not in outcome.stored:
        return []
    _, files, before, after = outcome.stored["turned"]
    if after <= 2 * before:
        return []
    return [
        f"{files:,} turned files are stored as PNG, which changes no pixel:"
        f" {after / before:.1f} times their bytes; --shrink=512 stores larger ones as JPEG"
    ]


def show(table: Table) -> None:
    """Prints a table; escapes characters that the terminal's encoding lacks."""
    out = console.console()
    with out.capture() as printed:
        out.print(table)
    lines = (line.rstrip() for line in printed.get().splitlines())
    say("\n".join(line for line in lines if line))


def pairs(counts: dict[str, int]) -> str:
    """Formats counts as ``train=80 val=20``."""
    return " ".join(f"{split}={count}" for split, count in counts.items())


def say(text: str) -> None:
    """Prints a line; escapes characters that the terminal's encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
