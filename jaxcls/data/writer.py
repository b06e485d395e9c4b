"""Writes encoded images as a TFDS dataset in ArrayRecord; equal input gives equal bytes.

A dataset appears under its name only when it is complete. A killed run leaves a hidden
folder, and the next run removes it.
"""

import array
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from jaxcls import atomic
from jaxcls.data import example
from jaxcls.errors import InputError
from jaxcls.version import __version__

VERSION = "1.0.0"  # Of a dataset that has none.
# A shard ends with the record that exceeds this size. ImageNet then has a few hundred
# files, which a pod can stage and mount.
SHARD_BYTES = 1 << 28
# A shard has at most this many records. To read one record, ArrayRecord takes 2 ns for
# each record of the shard, which is 2.8 ms in a shard of 1.2 million.
SHARD_RECORDS = 8192


class Shard(NamedTuple):
    """A file of records: its name, number of records, size in bytes and SHA-256."""

    file: str
    examples: int
    bytes: int
    sha256: str


class Contents:
    """The labels, shards and fingerprint of a dataset, collected while it is written.

    folder: the folder of the files. name, version: those of the dataset in TFDS.
    The fingerprint is a digest over (split, name, image bytes, label) in record order. It
    identifies the content, not the files: TFDS may write the same content as different
    bytes.
    """

    def __init__(self, folder: pathlib.Path, name: str, version: str = VERSION) -> None:
        self._folder, self._name, self._version = folder, name, version
        self._fingerprint = hashlib.sha256()
        self.labels: dict[str, array.array[int]] = {}
        self.shards: dict[str, list[Shard]] = {}

    def begin(self, split: str) -> None:
        """Begins a split; the next examples belong to it."""
        self._fingerprint.update(f"split {split}\n".encode())
        self.labels[split], self.shards[split] = array.array("q"), []

    def add(self, digest: bytes, label: int) -> None:
        """Adds an example to the last split; digest: of `Example.digest`."""
        self._fingerprint.update(digest)
        next(reversed(self.labels.values())).append(label)

    def write_split(self, split: str, records: Iterable[bytes]) -> None:
        """Writes serialised records, in order, as the shards of a new split.

        `records` adds each example that it yields.
        """
        self.begin(split)
        records, written = iter(records), list[tuple[int, int]]()
        record = next(records, None)
        while record is not None or not written:
            examples = size = 0
            with _open(self._folder / f"{split}.{len(written)}") as writer:
                while (
                    record is not None and size < SHARD_BYTES and examples < SHARD_RECORDS
                ):
                    writer.write(record)
                    examples, size = examples + 1, size + len(record)
                    record = next(records, None)
            written.append((examples, size))
        for number, (examples, size) in enumerate(written):
            file = f"{self._name}-{split}.array_record-{number:05}-of-{len(written):05}"
            path = (self._folder / f"{split}.{number}").rename(self._folder / file)
            self.shards[split].append(Shard(file, examples, size, sha256(path)))

    def write_info(self, about: str, features: Any, keys: tuple[str, str]) -> None:
        """Writes the metadata that TFDS reads; keys: the image key and the label key."""
        name, version = self._name, tfds.core.Version(self._version)
        identity = tfds.core.dataset_info.DatasetIdentity(
            name=name, version=version, data_dir=str(self._folder), module_name=""
        )
        info = tfds.core.DatasetInfo(
            builder=identity, description=about, features=features, supervised_keys=keys
        )
        info.set_file_format("array_record")
        template = tfds.core.ShardedFileTemplate(
            dataset_name=name, data_dir=self._folder, filetype_suffix="array_record"
        )
        infos = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.examples for shard in shards],
                num_bytes=sum(shard.bytes for shard in shards),
                filename_template=template.replace(split=split),
            )
            for split, shards in self.shards.items()
        ]
        info.set_splits(tfds.core.splits.SplitDict(infos))
        info.write_to_directory(self._folder)

    def write_manifest(
        self, source: str, class_names: Sequence[str], *, rejected: int = 0, **more: Any
    ) -> None:
        """Writes the manifest, and the labels [n] of each split in a file beside it.

        The manifest identifies the content, and has a SHA-256 of each shard, of each other
        file, and of itself (see `sources.manifest`). It holds no date and no path. A label
        of -1 means no label. more: further entries. Call it last.
        """
        examples = {}
        for split, labels in self.labels.items():
            values = np.array(labels, np.int32)
            np.save(self._folder / example.LABELS.format(split), values, allow_pickle=False)
            counts = np.bincount(values[values >= 0], minlength=len(class_names))
            examples[split] = counts.tolist()
        shards = self.shards.items()
        of_shards = {shard.file for each in self.shards.values() for shard in each}
        others = sorted(path.name for path in self._folder.iterdir() if path.is_file())
        content = {
            "source": source,
            "jaxcls": __version__,
            "classes": list(class_names),
            "examples": examples,
            "rejected": rejected,
            **more,
            "fingerprint": f"sha256:{self._fingerprint.hexdigest()}",
            "shards": {
                split: [shard._asdict() for shard in each] for split, each in shards
            },
            "files": {
                name: sha256(self._folder / name)
                for name in others
                if name not in (*of_shards, example.MANIFEST)
            },
        }
        content["seal"] = seal_of(content)
        (self._folder / example.MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def features(
    class_names: tuple[str, ...], image_shape: tuple[int | None, int | None, int]
) -> Any:
    """Returns the TFDS features of the records that `example.serialize` makes."""
    return tfds.features.FeaturesDict(
        {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(shape=image_shape),
            "label": tfds.features.ClassLabel(names=list(class_names)),
        }
    )


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[ArrayRecordWriter]:
    """Opens a shard for writing; a full disk raises OSError."""
    try:
        # One record per chunk, as in TFDS, so random access unpacks no other record.
        writer = ArrayRecordWriter(str(path), "group_size:1")
        try:
            yield writer
        finally:
            writer.close()
    except RuntimeError as error:
        raise OSError(str(error)) from None


@contextlib.contextmanager
def whole(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty folder that becomes `target` when the block succeeds.

    Raises `InputError` if `target` exists, another process is writing it, or the disk is
    full.
    """
    remedy = "make room, or give another --data_dir"
    with atomic.explained(target.parent, remedy):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        _lock(descriptor, target)
        if target.exists():
            raise InputError(
                f"{target} exists; give another --name, or remove it to prepare it anew"
            )
        folder = target.with_name(f".{target.name}.incomplete")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            with atomic.becoming(target, folder, remedy):
                folder.mkdir()
                yield folder
        finally:
            with contextlib.suppress(OSError):  # Only an empty folder can be removed.
                target.parent.rmdir()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, target: pathlib.Path) -> None:
    """Allows one writer per dataset; the system releases the lock of a dead process."""
    busy = InputError(f"{target} is being written by another process; wait")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy from None
    except OSError:  # Some network file systems cannot lock a folder.
        pass
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(descriptor), os.stat(target.parent)):
            return
    raise busy  # A failed process removed the folder after it was opened here.


def seal_of(manifest: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a manifest's content but its seal, in hexadecimal."""
    content = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
