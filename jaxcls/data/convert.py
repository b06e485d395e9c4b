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
    info = sources.builder_of(source).info
    if not info.splits:
        raise InputError(f"{source} has no split; copy it again, or prepare it again")
    keys = sources.label_keys(info, f"{source}")
    version = str(info.version)
    target = root / name / version
    if target.resolve() == source.resolve():
        raise InputError(f"{source} is itself what would be written; give a --data_dir")
    with writer.whole(target) as folder:
        contents = writer.Contents(folder, name, version)
        for split, part in info.splits.items():
            files = map(pathlib.Path, part.filepaths)
            records = itertools.chain.from_iterable(map(tfrecords.records, files))
            contents.write_split(split, _checked(records, contents, info, keys))
            found = len(contents.labels[split])
            if found != part.num_examples:
                raise InputError(
                    f"{source}: split {split} holds {found} records of"
                    f" {part.num_examples}; a shard was changed: copy it again"
                )
        contents.write_info(info.description, info.features, keys)
        class_names = info.features[keys[1]].names
        contents.write_manifest("TFDS, converted from TFRecord", class_names)
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
    contents = writer.Contents(folder, name)
    for split, part in info.splits.items():
        contents.begin(split)
        for path, count in zip(part.filepaths, part.shard_lengths, strict=True):
            file = pathlib.Path(path)
            checked = _checked(_records(file), contents, info, keys)
            size, digest = sum(map(len, checked)), writer.sha256(file)
            contents.shards[split].append(writer.Shard(file.name, count, size, digest))
    contents.write_manifest("TFDS", info.features[keys[1]].names)
    return folder


def _checked(
    records: Iterable[bytes], contents: writer.Contents, info: Any, keys: tuple[str, str]
) -> Iterator[bytes]:
    """Yields the records of a split unchanged, and adds each to `contents`.

    Raises `InputError` for a record without one image and one label of a known class.
    """
    split, labels = list(contents.labels.items())[-1]
    classes = info.features[keys[1]].num_classes
    for record in records:
        where = f"record {len(labels)} of split {split}"
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
        contents.add(example.digest(), example.label)
        yield record


def _records(file: pathlib.Path) -> Iterator[bytes]:
    """Yields the records of an ArrayRecord file in order."""
    with ArrayRecordDataSource(str(file)) as data:
        for number in range(len(data)):
            yield data[number]
