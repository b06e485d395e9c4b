"""Converts TFDS datasets, existing or new, to ArrayRecord with our manifest."""

import importlib.util
import itertools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

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
    keys = sources.label_keys(info, f"{source}")
    version = str(info.version)
    target = root / name / version
    if target.resolve() == source.resolve():
        raise InputError(f"{source} is itself what would be written; give a --data_dir")
    contents = writer.Contents()
    with writer.whole(target) as folder:
        for split, part in info.splits.items():
            files = map(pathlib.Path, part.filepaths)
            records = itertools.chain.from_iterable(map(tfrecords.records, files))
            contents.begin(split)
            checked = _checked(records, split, info, keys, contents)
            contents.shards[split] = writer.write_split(folder, name, split, checked)
            found = len(contents.labels[split])
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
            splits=contents.shards,
        )
        class_names = info.features[keys[1]].names
        contents.write_manifest(folder, "TFDS, converted from TFRecord", class_names)
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
    folder, info = pathlib.Path(builder.data_dir), builder.info
    keys = sources.label_keys(info, f"{folder}")
    contents = writer.Contents()
    for split, part in info.splits.items():
        contents.begin(split)
        contents.shards[split] = []
        for path, count in zip(part.filepaths, part.shard_lengths, strict=True):
            file = pathlib.Path(path)
            checked = _checked(_records(file), split, info, keys, contents)
            shard = writer.Shard(
                file.name, count, sum(map(len, checked)), writer.sha256(file)
            )
            contents.shards[split].append(shard)
    contents.write_manifest(folder, "TFDS", info.features[keys[1]].names)
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


def _checked(
    records: Iterable[bytes],
    split: str,
    info: Any,
    keys: tuple[str, str],
    contents: writer.Contents,
) -> Iterator[bytes]:
    """Yields the records unchanged, and adds each to `contents`.

    Raises `InputError` for a record without one image and one label of a known class.
    """
    classes = info.features[keys[1]].num_classes
    for record in records:
        where = f"record {len(contents.labels[split])} of split {split}"
        try:
            example = parse(record, *keys)
        except ValueError as error:
            raise InputError(
                f"{where}: {error}; it must hold one encoded {keys[0]} and one {keys[1]}"
            ) from None
        if example.label >= classes:
            raise InputError(
                f"{where} has label {example.label}, and there are {classes} classes;"
                " prepare the dataset again"
            )
        contents.add(example.digests()[1], example.label)
        yield record


def _records(file: pathlib.Path) -> Iterator[bytes]:
    """Yields the records of an ArrayRecord file in order; 256 are in memory at a time."""
    with ArrayRecordDataSource(str(file)) as data:
        for start in range(0, len(data), 256):
            yield from data.__getitems__(range(start, min(start + 256, len(data))))
