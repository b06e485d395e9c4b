"""Opens datasets on disk for random access to encoded records.

Reads any TFDS dataset in ArrayRecord. It needs neither TensorFlow nor the dataset's code,
because the folder describes the content.
"""

import contextlib
import copy
import json
import os
import pathlib
import re
import resource
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcls.data import published, splits
from jaxcls.data.datasets import BUNDLED
from jaxcls.data.example import LABELS, MANIFEST, Example, parse
from jaxcls.errors import InputError, did_you_mean, first_line

Record = tuple[bytes, int]

_MANY = 100_000  # Reading the labels of this many examples prints a line.


class Facts(NamedTuple):
    """The sizes and classes of a dataset.

    image_shape: (H, W, C), with None where images differ. fingerprint: digest of the
    content, from the manifest that `prepare` writes, or "".
    """

    name: str
    version: str
    image_shape: tuple[int | None, int | None, int]
    num_classes: int
    class_names: tuple[str, ...]
    splits: dict[str, int]
    fingerprint: str = ""


def published_facts(name: str) -> Facts | None:
    """Returns the published facts of a dataset, or None; reads no disk."""
    known = published.PUBLISHED.get(name.partition(":")[0])
    if known is None:
        return None
    return Facts(name, "", known.image_shape, known.num_classes, (), dict(known.splits))


class Dataset:
    """A prepared TFDS dataset: its `facts`, and a `source` for each split.

    A bundled dataset is prepared on first use. Raises `InputError` if the dataset is absent
    (and says how to get it), incomplete or not in ArrayRecord.
    """

    def __init__(self, name: str, data_dir: str) -> None:
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()  # Only jaxcls prints lines on the console.
        self.folder = folder = _folder(name, data_dir)
        _allow_open_files()
        try:
            self._builder = tfds.builder_from_directory(folder)
        except Exception as error:  # TFDS and protobuf raise many exception types.
            raise _damaged(folder / "dataset_info.json", error) from None
        info = self._builder.info
        if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            form = info.file_format.value if info.file_format else "an unknown format"
            raise InputError(
                f"data.name={name}: {folder} is in {form} and must be array_record; for a"
                f" copy in NEW_DIR: jaxcls prepare --source={folder}"
                f" --name={re.split('[:/]', name)[0]} --data_dir=NEW_DIR"
            )
        self._keys = label_keys(info, f"data.name={name!r}")
        fingerprint = manifest(folder).get("fingerprint", "")
        self.facts = _facts(name, info, self._keys, fingerprint)
        published.check(self.facts.name, self.facts.splits, "data.name")

    def source(self, split: str, key: str) -> "Source":
        """Returns the records of a split such as ``train[:90%]``; `key` is its config key.

        Raises `InputError` for an unknown split or a missing shard.
        """
        import tensorflow_datasets as tfds

        image_key, label_key = self._keys
        parts = []
        for name, start, stop in splits.resolve(split, self.facts.splits, key):
            info = self._builder.info.splits[name]
            for path in info.filepaths:
                if not os.path.exists(path):
                    raise InputError(
                        f"{key}={split!r}: shard {path} is missing; copy it there or"
                        f" prepare {self.facts.name} again"
                    )
            decoders = {image_key: tfds.decode.SkipDecoding()}
            data = self._builder.as_data_source(name, decoders=decoders)
            files = [os.path.basename(path) for path in info.filepaths]
            shards = list(zip(files, info.shard_lengths, strict=True))
            parts.append(Part(data, start, stop, shards))
        return Source(parts, image_key, label_key, split)

    def labels(self, split: str, key: str) -> np.ndarray:
        """Returns the labels [n] int32 of a split, from `prepare`'s file or the records."""
        found = []
        for name, start, stop in splits.resolve(split, self.facts.splits, key):
            file = self.folder / LABELS.format(name)
            if not file.is_file():
                return _read_labels(self.source(split, key), split)
            try:
                labels = np.load(file, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise _damaged(file, error) from None
            if labels.shape != (self.facts.splits[name],):
                raise InputError(
                    f"{file} holds {labels.shape} labels for the {self.facts.splits[name]}"
                    f" examples of {name}; remove it, or prepare {self.facts.name} again"
                )
            found.append(labels[start:stop])
        return np.concatenate(found)


def _read_labels(source: "Source", split: str) -> np.ndarray:
    n = len(source)
    if n >= _MANY:
        print(f"reading {split} once for its {n:,} labels; prepare writes them", flush=True)
    labels = np.empty(n, np.int32)
    for start in range(0, n, 1024):
        rows = np.arange(start, min(start + 1024, n))
        labels[rows] = [label for _, label in source.read(rows)]
    return labels


class Part(NamedTuple):
    """Records start..stop-1 of `data`; shards: (file, number of records) of each shard."""

    data: Any
    start: int
    stop: int
    shards: list[tuple[str, int]]


class Source:
    """Random access to the records of a split; many threads may read at once."""

    def __init__(
        self,
        parts: Sequence[Part],
        image_key: str,
        label_key: str,
        split: str,
    ) -> None:
        self._parts, self._split = parts, split
        self._starts = np.cumsum([0, *(part.stop - part.start for part in parts)])
        self._keys = image_key, label_key
        self._rows = np.arange(self._starts[-1])

    def select(self, rows: np.ndarray) -> "Source":
        """Returns a source of only the examples at `rows` [N] int64, renumbered from 0."""
        selected = copy.copy(self)
        selected._rows = self._rows[rows]
        return selected

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        """Returns the split, record number and file of an example, for messages."""
        index = int(self._rows[index])
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        part = self._parts[which]
        row = index - int(self._starts[which]) + part.start
        file = ""
        for name, count in part.shards:
            if row < count:
                file = f" (record {row} of {name})"
                break
            row -= count
        return f"record {index} of split {self._split!r}{file}"

    def read(self, indices: np.ndarray) -> Iterator[Record]:
        """Yields (encoded image, label) of each of `indices` [N] int64 in 0..len-1, lazily.

        The caller uses a record while it is in the cache. TFDS's `__getitems__` starts
        threads for every shard it touches.
        """
        return ((example.image, example.label) for example in self._examples(indices))

    def names(self, indices: np.ndarray) -> Iterator[bytes]:
        """Yields the name of the original file, or b"", for each of `indices` [N] int64."""
        return (example.name for example in self._examples(indices))

    def _examples(self, indices: np.ndarray) -> Iterator[Example]:
        rows = self._rows[indices]
        which = np.searchsorted(self._starts, rows, side="right") - 1
        for number, at, index in zip(which.tolist(), rows.tolist(), indices, strict=True):
            data = self._parts[number].data
            row = at - int(self._starts[number]) + self._parts[number].start
            try:
                yield parse(data.data_source[row], *self._keys)
            except RuntimeError as error:  # ArrayRecord checks its chunks.
                raise self._damaged(index, first_line(error)) from None
            except ValueError:  # Only TFDS can decode this form.
                found = data[row]
                image, label = (found[key] for key in self._keys)
                if image is None or label is None:  # The shard is cut at a block's end.
                    raise self._damaged(index, "the record is empty") from None
                yield Example(found.get("file_name", b""), image, int(label))

    def _damaged(self, index: int, why: str) -> InputError:
        return InputError(
            f"{self.where(index)} cannot be read: a shard is damaged ({why});"
            " copy or prepare the dataset again"
        )


def data_root(data_dir: str, key: str = "data.dir") -> pathlib.Path:
    """Returns the folder of datasets: `data_dir`, TFDS_DATA_DIR, or ~/tensorflow_datasets.

    Raises `InputError` for a URL or an invalid path.
    """
    if "://" in data_dir:
        raise InputError(
            f"{key}={data_dir} is a URL, and must be a folder: random access needs a"
            " file system; mount the bucket and give its mount point"
        )
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        return pathlib.Path(chosen).expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise InputError(f"{key}={chosen} is no path ({error}); try ~/data") from None


def _folder(name: str, data_dir: str) -> pathlib.Path:
    """Returns the folder of a prepared dataset, of the newest or the named version."""
    root = data_root(data_dir)
    base, _, version = name.partition(":")
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+(/[A-Za-z0-9_.+-]+)?", base) or ".." in base:
        raise InputError(
            f"data.name={name!r} is not 'name[/config][:1.2.3]'; try 'cifar10'"
        )
    found = _versions(root / base)
    if not found and base in BUNDLED:
        _prepare(base, root)
        found = _versions(root / base)
    if not found:
        raise InputError(_absent(name, base, root))
    if version and version not in found:
        raise InputError(f"data.name={name!r}: {root / base} holds {', '.join(found)}")
    newest = max(found, key=lambda v: [int(part) for part in v.split(".")])
    return root / base / (version or newest)


def _versions(folder: pathlib.Path) -> list[str]:
    """Returns the prepared versions in a dataset's folder."""
    if not folder.is_dir():
        return []
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", entry.name)
        and (entry / "dataset_info.json").is_file()
    )


def _absent(name: str, base: str, root: pathlib.Path) -> str:
    """Returns the message for a missing dataset, which says how to get it."""
    configs = []
    if (root / base).is_dir():
        configs = [f"{base}/{e.name}" for e in (root / base).iterdir() if _versions(e)]
    if configs:
        return (
            f"data.name={name!r} has several configs; one of: {', '.join(sorted(configs))}"
        )
    here = []
    if root.is_dir():
        here = sorted(e.name for e in root.iterdir() if _versions(e))
    near = (
        ""
        if base in published.PUBLISHED
        else did_you_mean(base, {*here, *published.PUBLISHED})
    )
    how = published.ORIGINALS.get(base, "give a folder or an archive of images to")
    source = "FOLDER" if base in published.ORIGINALS else "FOLDER_OR_ARCHIVE"
    command = f"jaxcls prepare --source={source} --name={base}"
    tfds = f" (or --tfds={base}, where TensorFlow is installed)"
    return (
        f"data.name={name!r} is not prepared in {root}{near}; {how} {command}"
        f" --data_dir={root}{tfds}; prepared there: {', '.join(here) or 'nothing'}"
    )


def _prepare(base: str, root: pathlib.Path) -> None:
    """Writes a bundled dataset; two processes may do this at the same time."""
    print(f"preparing {base} in {root} ...", flush=True)
    try:
        builder = BUNDLED[base](data_dir=str(root), file_format="array_record")
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
            builder.download_and_prepare()
    except OSError as error:
        if _versions(root / base):  # Another process finished first.
            return
        raise InputError(
            f"data.dir={root}: {base} cannot be written there ({error.strerror or error});"
            " give a folder you may write to: --config.data.dir=DIR"
        ) from None


def label_keys(info: Any, where: str) -> tuple[str, str]:
    """Returns a record's keys of the encoded image and of the class.

    Raises `InputError`, which begins with `where`, for a dataset without images and
    classes.
    """
    import tensorflow_datasets as tfds

    keys = info.supervised_keys or ("image", "label")
    kinds = tfds.features.Image, tfds.features.ClassLabel
    if len(keys) != 2 or not all(
        key in info.features and isinstance(info.features[key], kind)
        for key, kind in zip(keys, kinds, strict=True)
    ):
        raise InputError(
            f"{where} is not a classification dataset: its features are"
            f" {', '.join(info.features)}, and an image and a class label are needed"
        )
    return keys[0], keys[1]


def _facts(name: str, info: Any, keys: tuple[str, str], fingerprint: str) -> Facts:
    image_key, label_key = keys
    height, width, channels = info.features[image_key].shape
    label = info.features[label_key]
    names = label.names if label.num_classes else []
    return Facts(
        name.partition(":")[0],
        str(info.version),
        (height, width, channels or 3),
        label.num_classes,
        tuple(names),
        {split: part.num_examples for split, part in info.splits.items()},
        fingerprint,
    )


def manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the manifest that `prepare` wrote, or {} for a dataset of another origin."""
    file = folder / MANIFEST
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from None


def facts_of(implied: Mapping[str, Any]) -> Facts:
    """Returns the facts from the derived values of a run's config.json."""
    facts = dict(implied["facts"])
    facts["image_shape"] = tuple(facts["image_shape"])
    facts["class_names"] = tuple(facts["class_names"])
    return Facts(**facts)


def check_same(before: Facts, now: Facts) -> None:
    """Raises `InputError` if the data changed since the run began."""
    for field in ("num_classes", "class_names", "splits", "image_shape", "fingerprint"):
        old, new = getattr(before, field), getattr(now, field)
        if old != new and old and new:  # An empty value is unknown.
            raise InputError(
                f"data.name={now.name!r}: the data changed since the run began: {field} was"
                f" {str(old)[:80]} and is {str(new)[:80]}; restore the data"
            )


def _damaged(file: pathlib.Path, error: Exception) -> InputError:
    return InputError(
        f"{file} is damaged ({type(error).__name__}: {first_line(error)}); copy or prepare"
        " the dataset again"
    )


def _allow_open_files() -> None:
    """Increases the limit of open files, because each shard stays open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 10_240 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
