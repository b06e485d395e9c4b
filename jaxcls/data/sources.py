"""Opens datasets on disk for random access to encoded records.

Reads any TFDS dataset in ArrayRecord. It needs neither TensorFlow nor the dataset's code,
because the folder describes the content.
"""

import contextlib
import copy
import os
import pathlib
import re
import resource
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxcls import atomic
from jaxcls.data import published, splits
from jaxcls.data.datasets import BUNDLED
from jaxcls.data.example import LABELS, MANIFEST, Example, parse
from jaxcls.data.published import Facts as Facts
from jaxcls.data.writer import seal_of, sha256
from jaxcls.errors import InputError, did_you_mean, first_line, shown

_MANY = 100_000  # Reading the labels of this many examples prints a line.


def published_facts(name: str) -> Facts | None:
    """Returns the published facts of a dataset, or None; reads no disk."""
    return published.PUBLISHED.get(name.partition(":")[0])


class Dataset:
    """A prepared TFDS dataset: its `facts`, and a `source` for each split.

    A bundled dataset is prepared on first use. Raises `InputError` if the dataset is absent
    (and says how to get it), incomplete or not in ArrayRecord.
    """

    def __init__(self, name: str, data_dir: str) -> None:
        self.folder = folder = _folder(name, data_dir)
        saved = manifest(folder)
        _check_files(folder, saved.get("files", {}))
        _allow_open_files()
        self._builder = builder_of(folder)
        info, base = self._builder.info, name.partition(":")[0]
        if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            form = info.file_format.value if info.file_format else "an unknown format"
            raise InputError(
                f"data.name={name}: {folder} is in {form} and must be array_record; for a"
                f" copy in NEW_DIR: jaxcls prepare --source={folder}"
                f" --name={base.split('/')[0]} --data_dir=NEW_DIR"
            )
        self._keys = image_key, label_key = label_keys(info, f"data.name={name!r}")
        height, width, channels = info.features[image_key].shape
        label = info.features[label_key]
        self.facts = Facts(
            base,
            str(info.version),
            (height, width, channels or 3),
            label.num_classes,
            tuple(label.names if label.num_classes else ()),
            {split: part.num_examples for split, part in info.splits.items()},
            saved.get("fingerprint", ""),
        )
        published.check(base, self.facts.splits, "data.name")

    def source(self, split: str, key: str) -> "Source":
        """Returns the records of a split such as ``train[:90%]``; `key` is its config key.

        Raises `InputError` for an unknown split or a missing shard.
        """
        parts = splits.resolve(split, self.facts.splits, key)
        ranges = "+".join(f"{name}[{start}:{stop}]" for name, start, stop in parts)
        try:
            shards = self._builder.info.splits[ranges].file_instructions
        except Exception as error:  # TFDS fills in the names of files that it is told.
            raise _damaged(self.folder / "dataset_info.json", error) from None
        for shard in shards:
            if not os.path.exists(shard.filename):
                raise InputError(
                    f"{key}={split!r}: shard {shard.filename} is missing; copy it there or"
                    f" prepare {self.facts.name} again"
                )
        data = self._builder.as_data_source(ranges).data_source
        return Source(data, shards, self._keys, split)

    def lists_labels(self, split: str, key: str) -> bool:
        """Returns whether the labels of a split are in `prepare`'s files."""
        parts = splits.resolve(split, self.facts.splits, key)
        return all((self.folder / LABELS.format(name)).is_file() for name, *_ in parts)

    def labels(self, split: str, key: str) -> np.ndarray:
        """Returns the labels [n] int32 of a split, from `prepare`'s file or the records."""
        found = []
        for name, start, stop in splits.resolve(split, self.facts.splits, key):
            file, n = self.folder / LABELS.format(name), self.facts.splits[name]
            if not file.is_file():
                return _read_labels(self.source(split, key), split)
            try:
                labels = np.load(file, allow_pickle=False)
                if labels.shape != (n,):
                    raise ValueError(f"it has {labels.shape} labels for {n} examples")
            except Exception as error:  # NumPy raises many types for a damaged file.
                raise _damaged(file, error) from None
            found.append(labels[start:stop])
        return np.concatenate(found)


def _read_labels(source: "Source", split: str) -> np.ndarray:
    n = len(source)
    if n >= _MANY:
        print(f"reading {split} once for its {n:,} labels; prepare writes them", flush=True)
    labels = (label for _, label in source.read(np.arange(n)))
    return np.fromiter(labels, np.int32, n)


class Source:
    """Random access to the records of a split; many threads may read at once.

    data: its records. shards: TFDS's instructions that read them. keys: see `label_keys`.
    """

    def __init__(
        self, data: Sequence[bytes], shards: Any, keys: tuple[str, str], split: str
    ) -> None:
        self._data, self._shards, self._keys, self._split = data, shards, keys, split
        self._rows = np.arange(len(data))

    def select(self, rows: np.ndarray) -> "Source":
        """Returns a source of only the examples at `rows` [N] int64, renumbered from 0."""
        selected = copy.copy(self)
        selected._rows = self._rows[rows]
        return selected

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        """Returns what an example is called in messages: its file, split and record."""
        with contextlib.suppress(InputError):
            if name := next(self.names(np.array([index]))):
                return f"{shown(name)}, {self._place(index)}"
        return self._place(index)

    def _place(self, index: int) -> str:
        """Returns the split, record number and shard of an example."""
        row = left = int(self._rows[index])
        for shard in self._shards:
            if left < shard.take:
                break
            left -= shard.take
        file = f"record {left + shard.skip} of {os.path.basename(shard.filename)}"
        return f"record {row} of split {self._split!r} ({file})"

    def read(self, indices: np.ndarray) -> Iterator[tuple[bytes, int]]:
        """Yields (encoded image, label) of each of `indices` [N] int64 in 0..len-1, lazily.

        The caller uses a record while it is in the cache. TFDS's `__getitems__` starts
        threads for every shard it touches.
        """
        return ((example.image, example.label) for example in self._examples(indices))

    def names(self, indices: np.ndarray) -> Iterator[bytes]:
        """Yields the name of the original file, or b"", for each of `indices` [N] int64."""
        return (example.name for example in self._examples(indices))

    def _examples(self, indices: np.ndarray) -> Iterator[Example]:
        for index, row in zip(indices.tolist(), self._rows[indices].tolist(), strict=True):
            try:
                yield parse(self._data[row], *self._keys)
            except (RuntimeError, ValueError) as error:  # ArrayRecord checks its chunks.
                raise InputError(
                    f"{self._place(index)} cannot be read: a shard is damaged"
                    f" ({first_line(error)}); copy or prepare the dataset again"
                ) from None


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
    if base in BUNDLED and not _versions(root / base):
        _prepare(base, root)
    found = _versions(root / base)
    if not found:
        raise InputError(_absent(name, base, root))
    if version and version not in found:
        raise InputError(f"data.name={name!r}: {root / base} holds {', '.join(found)}")
    return root / base / (version or found[-1])


def _versions(folder: pathlib.Path) -> list[str]:
    """Returns the prepared versions in a dataset's folder, the newest last."""
    found = [file.parent.name for file in folder.glob("*.*.*/dataset_info.json")]
    numbered = [name for name in found if re.fullmatch(r"\d+\.\d+\.\d+", name)]
    return sorted(numbered, key=lambda version: [int(part) for part in version.split(".")])


def _prepared(folder: pathlib.Path) -> list[str]:
    """Returns the names in a folder that have prepared versions, sorted."""
    names = sorted(path.name for path in folder.glob("*"))
    return [name for name in names if _versions(folder / name)]


def _absent(name: str, base: str, root: pathlib.Path) -> str:
    """Returns the message for a missing dataset, which says how to get it."""
    configs = [f"{base}/{config}" for config in _prepared(root / base)]
    if configs:
        return f"data.name={name!r} has several configs; one of: {', '.join(configs)}"
    here, near, source = _prepared(root), "", "FOLDER"
    how = f"download {published.ORIGINALS.get(base)} into a FOLDER and run"
    if base not in published.ORIGINALS:
        near = did_you_mean(base, {*here, *published.PUBLISHED})
        how, source = "give a folder or an archive of images to", "FOLDER_OR_ARCHIVE"
    return (
        f"data.name={name!r} is not prepared in {root}{near}; {how} jaxcls prepare"
        f" --source={source} --name={base} --data_dir={root} (or --tfds={base}, where"
        f" TensorFlow is installed); prepared there: {', '.join(here) or 'nothing'}"
    )


def _prepare(base: str, root: pathlib.Path) -> None:
    """Writes a bundled dataset; two processes may do this at the same time."""
    print(f"preparing {base} in {root} ...", flush=True)
    tfds.disable_progress_bar()  # Only jaxcls prints lines on the console.
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


def builder_of(folder: pathlib.Path) -> Any:
    """Returns the TFDS builder of a dataset's folder; raises `InputError`."""
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # TFDS and protobuf raise many exception types.
        raise _damaged(folder / "dataset_info.json", error) from None


def label_keys(info: Any, where: str) -> tuple[str, str]:
    """Returns a record's keys of the encoded image and of the class.

    Raises `InputError`, which begins with `where`, for a dataset without images and
    classes.
    """
    keys = info.supervised_keys or ("image", "label")
    kinds = tfds.features.Image, tfds.features.ClassLabel
    found = [info.features[key] for key in keys if key in info.features]
    if not len(keys) == len(found) == 2 or not all(map(isinstance, found, kinds)):
        raise InputError(
            f"{where} is not a classification dataset: its features are"
            f" {', '.join(info.features)}, and an image and a class label are needed"
        )
    return keys[0], keys[1]


def manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the manifest that `prepare` wrote, or {} for a dataset of another origin.

    Raises `InputError` if it was changed since.
    """
    found = atomic.read_json(folder / MANIFEST)
    if found is None:
        return {}
    if not isinstance(found, dict) or found.get("seal") not in (None, seal_of(found)):
        raise _damaged(folder / MANIFEST, ValueError("its seal differs"))
    files, fingerprint = found.get("files", {}), found.get("fingerprint", "")
    if not (isinstance(files, dict) and isinstance(fingerprint, str)):
        raise _damaged(folder / MANIFEST, ValueError("its files or fingerprint are none"))
    return found


def _check_files(folder: pathlib.Path, sums: Mapping[str, str]) -> None:
    """Raises `InputError` for a small file of a dataset that is not as it was written.

    sums: {name: SHA-256}, of the manifest. Labels, class names and splits decide what a
    model learns. Shards are checked as they are read, by ArrayRecord.
    """
    for name, digest in sums.items():
        file = folder / name
        try:
            is_same = sha256(file) == digest
        except OSError as error:
            raise _damaged(file, error) from None
        if not is_same:
            raise _damaged(file, ValueError("its SHA-256 differs from the manifest's"))


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
