"""Datasets that TFDS wrote, or writes -> ArrayRecord with a manifest of ours."""

import importlib.util
import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from jaxcls.data import writer
from jaxcls.data.example import parse
from jaxcls.data.importers import tfrecords
from jaxcls.errors import InputError
from jaxcls.version import __version__


def from_tfrecord(source: pathlib.Path, root: pathlib.Path, name: str) -> pathlib.Path:
    """Copy a TFDS dataset from TFRecord, record by record; returns its new folder.

    Every checksum of the old files is verified; raises `InputError` where one does not
    match, or a split does not hold what its description says.
    """
    info = _info(source)
    keys = label_keys(info, source)
    version = str(info.version)
    if (root / name / version).resolve() == source.resolve():
        raise InputError(f"{source} is itself what would be written; give a --data_dir")
    with writer.whole(root / name / version) as folder:
        facts = _Facts(info, keys)
        shards = {}
        for split, part in info.splits.items():
            files = [pathlib.Path(os.fspath(path)) for path in part.filepaths]
            encoded = itertools.chain.from_iterable(map(tfrecords.records, files))
            shards[split] = writer.write_split(
                folder, name, split, facts.of(split, encoded)
            )
            found = len(facts.labels[split])
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
            keys=keys,
            splits=shards,
        )
        facts.write(folder, "TFDS, converted from TFRecord", shards)
    return root / name / version


def with_tfds(name: str, root: pathlib.Path) -> pathlib.Path:
    """Let TFDS download and prepare a dataset of its own; returns its folder.

    Raises `InputError` where TensorFlow is missing or TFDS fails.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"--tfds={name}: TFDS prepares its datasets with TensorFlow, which is not"
            ' installed; pip install "jaxcls[tfds]", or give the files with --source'
        )
    try:
        builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # TFDS and its builders raise many kinds.
        first = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"--tfds={name}: TFDS could not prepare it ({type(error).__name__}: {first})"
        ) from None
    info, folder = builder.info, pathlib.Path(builder.data_dir)
    facts = _Facts(info, label_keys(info, folder))
    shards = {}
    for split, part in info.splits.items():
        files = [pathlib.Path(os.fspath(path)) for path in part.filepaths]
        sizes = []
        for file, count in zip(files, part.shard_lengths, strict=True):
            before = facts.bytes
            for _ in facts.of(split, _read(file)):
                pass
            size = facts.bytes - before
            sizes.append(writer.Shard(file.name, count, size, writer.sha256(file)))
        shards[split] = sizes
    facts.write(folder, "TFDS", shards)
    return folder


def _info(source: pathlib.Path) -> Any:
    """What the folder of a dataset says of it; raises `InputError`."""
    try:
        info = tfds.builder_from_directory(source).info
    except Exception as error:  # TFDS and protobuf raise many kinds for a bad description.
        first = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"{source} cannot be read as a TFDS dataset ({type(error).__name__}: {first});"
            " copy it again, with its dataset_info.json and features.json"
        ) from None
    if not info.splits:
        raise InputError(f"{source} has no split; copy it again, or prepare it again")
    return info


def label_keys(info: Any, source: pathlib.Path) -> tuple[str, str]:
    """The keys of the encoded image and of the class; raises `InputError` for neither."""
    keys = info.supervised_keys or ("image", "label")
    kinds = tfds.features.Image, tfds.features.ClassLabel
    if len(keys) != 2 or not all(
        key in info.features and isinstance(info.features[key], kind)
        for key, kind in zip(keys, kinds, strict=True)
    ):
        raise InputError(
            f"{source} is not a classification dataset: its features are"
            f" {', '.join(info.features)}, and an image and a class label are needed"
        )
    return keys[0], keys[1]


class _Facts:
    """What a manifest says of records that pass by."""

    def __init__(self, info: Any, keys: tuple[str, str]) -> None:
        self._classes, self._keys = info.features[keys[1]], keys
        self._fingerprint = writer.Fingerprint()
        self.labels: dict[str, list[int]] = {}
        self.bytes = 0

    def of(self, split: str, encoded: Iterator[bytes]) -> Iterator[bytes]:
        """The same records."""
        if split not in self.labels:
            self._fingerprint.split(split)
        labels = self.labels.setdefault(split, [])
        for record in encoded:
            try:
                example = parse(record, *self._keys)
            except ValueError as error:
                raise InputError(
                    f"record {len(labels)} of split {split}: {error}; it must hold one"
                    f" encoded {self._keys[0]} and one {self._keys[1]}"
                ) from None
            self._fingerprint.add(example.digests()[1])
            labels.append(example.label)
            self.bytes += len(record)
            yield record

    def write(
        self, folder: pathlib.Path, source: str, shards: dict[str, list[writer.Shard]]
    ) -> None:
        """Write labels and manifest; print what was written."""
        counts = {}
        for split, labels in self.labels.items():
            array = np.array(labels, np.int32)
            writer.write_labels(folder, split, array)
            if array.max(initial=0) >= self._classes.num_classes:
                raise InputError(
                    f"split {split} has a label {array.max()}, and there are"
                    f" {self._classes.num_classes} classes; prepare the dataset again"
                )
            known = array[array >= 0]  # Test sets without labels have -1.
            counts[split] = np.bincount(known, minlength=self._classes.num_classes)
        writer.write_manifest(
            folder,
            {
                "source": source,
                "jaxcls": __version__,
                "classes": list(self._classes.names),
                "examples": {split: count.tolist() for split, count in counts.items()},
                "rejected": 0,
            },
            self._fingerprint,
            shards,
        )


def _read(file: pathlib.Path) -> Iterator[bytes]:
    """The records of an ArrayRecord file, some at a time."""
    with ArrayRecordDataSource(str(file)) as data:
        for start in range(0, len(data), 256):
            yield from data.__getitems__(range(start, min(start + 256, len(data))))
