"""Converts TFDS datasets, existing or new, to ArrayRecord with our manifest."""

import importlib.util
import itertools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from jaxcls.data import sources, writer
from jaxcls.data.example import parse
from jaxcls.data.importers import tfrecords
from jaxcls.errors import InputError, first_line


def from_tfrecord(source: pathlib.Path, root: pathlib.Path, name: str) -> pathlib.Path:
    """Copies a TFDS dataset from TFRecord, record by record; returns the new folder.

    Verifies every checksum of the old files. Raises `InputError` for a wrong checksum, or
    for a split whose number of records differs from its metadata.
    """
    info = _info(source)
    content = _Content(info, source)
    version = str(info.version)
    target = root / name / version
    if target.resolve() == source.resolve():
        raise InputError(f"{source} is itself what would be written; give a --data_dir")
    with writer.whole(target) as folder:
        shards = {}
        for split, part in info.splits.items():
            files = map(pathlib.Path, part.filepaths)
            records = itertools.chain.from_iterable(map(tfrecords.records, files))
            shards[split] = writer.write_split(
                folder, name, split, content.checked(split, records)
            )
            found = len(content.labels[split])
            if found != part.num_examples:
                raise InputError(
                    f"{source}: split {split} holds {found} records of"
                    f" {part.num_examples}; a shard was changed: copy it again"
                )
        writer.write_info(
            folder,
            name,
            version,
            about=info.description,
            features=info.features,
            keys=content.keys,
            splits=shards,
        )
        content.write(folder, "TFDS, converted from TFRecord", shards)
    return target


def with_tfds(name: str, root: pathlib.Path) -> pathlib.Path:
    """Downloads and prepares a dataset with TFDS; returns its folder.

    Raises `InputError` if TensorFlow is missing or TFDS fails.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"--tfds={name}: TFDS prepares its datasets with TensorFlow, which is not"
            ' installed; pip install "jaxcls[tfds]", or give the files with --source'
        )
    try:
        builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # TFDS and its builders raise many exception types.
        raise InputError(
            f"--tfds={name}: TFDS could not prepare it"
            f" ({type(error).__name__}: {first_line(error)})"
        ) from None
    folder = pathlib.Path(builder.data_dir)
    content = _Content(builder.info, folder)
    shards: dict[str, list[writer.Shard]] = {}
    for split, part in builder.info.splits.items():
        shards[split] = []
        for path, count in zip(part.filepaths, part.shard_lengths, strict=True):
            file = pathlib.Path(path)
            size = sum(map(len, content.checked(split, _records(file))))
            shards[split].append(writer.Shard(file.name, count, size, writer.sha256(file)))
    content.write(folder, "TFDS", shards)
    return folder


def _info(source: pathlib.Path) -> Any:
    """Returns the DatasetInfo in a dataset's folder; raises `InputError`."""
    try:
        info = tfds.builder_from_directory(source).info
    except Exception as error:  # TFDS and protobuf raise many exception types.
        raise InputError(
            f"{source} cannot be read as a TFDS dataset ({type(error).__name__}:"
            f" {first_line(error)}); copy it again, with its dataset_info.json and"
            " features.json"
        ) from None
    if not info.splits:
        raise InputError(f"{source} has no split; copy it again, or prepare it again")
    return info


class _Content:
    """Checks a stream of records, and collects their labels and digests."""

    def __init__(self, info: Any, folder: pathlib.Path) -> None:
        self.keys = sources.label_keys(info, f"{folder}")
        self._classes = info.features[self.keys[1]]
        self._fingerprint = writer.Fingerprint()
        self.labels: dict[str, list[int]] = {}

    def checked(self, split: str, records: Iterable[bytes]) -> Iterator[bytes]:
        """Yields the records unchanged; raises `InputError` for an invalid one."""
        if split not in self.labels:
            self._fingerprint.split(split)
        labels = self.labels.setdefault(split, [])
        for record in records:
            try:
                example = parse(record, *self.keys)
            except ValueError as error:
                raise InputError(
                    f"record {len(labels)} of split {split}: {error}; it must hold one"
                    f" encoded {self.keys[0]} and one {self.keys[1]}"
                ) from None
            self._fingerprint.add(example.digests()[1])
            labels.append(example.label)
            yield record

    def write(
        self, folder: pathlib.Path, source: str, shards: dict[str, list[writer.Shard]]
    ) -> None:
        """Writes the labels and the manifest; raises `InputError` for an unknown label."""
        labels = {split: np.array(found) for split, found in self.labels.items()}
        for split, values in labels.items():
            if values.max(initial=0) >= self._classes.num_classes:
                raise InputError(
                    f"split {split} has a label {values.max()}, and there are"
                    f" {self._classes.num_classes} classes; prepare the dataset again"
                )
        writer.write_manifest(
            folder, source, self._classes.names, labels, self._fingerprint, shards
        )


def _records(file: pathlib.Path) -> Iterator[bytes]:
    """Yields the records of an ArrayRecord file in order; 256 are in memory at a time."""
    with ArrayRecordDataSource(str(file)) as data:
        for start in range(0, len(data), 256):
            yield from data.__getitems__(range(start, min(start + 256, len(data))))
