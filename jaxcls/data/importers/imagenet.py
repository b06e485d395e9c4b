"""The tars of ILSVRC2012 as image-net.org gives them, indexed and never extracted."""

import pathlib
import re
import tarfile
from typing import IO, NamedTuple

import numpy as np

from jaxcls.data.importers.devkit import DEVKIT, REMEDY, read_devkit
from jaxcls.data.importers.listing import Found, Listing
from jaxcls.data.importers.tars import Reader, files, plain
from jaxcls.errors import InputError

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
CLASS_TAR = re.compile(r"(n\d{8})\.tar")
VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def is_imagenet(path: pathlib.Path) -> bool:
    """Whether `path` is a folder with ILSVRC2012's train or val tar, or is the former."""
    if path.is_dir():
        return any((path / name).is_file() for name in (TRAIN, VAL))
    try:
        if not path.is_file():
            return False
        with tarfile.open(path, "r:") as tar:
            # A tar may begin with the folder './'.
            names = [member.name for member in (tar.next(), tar.next()) if member]
            return any(CLASS_TAR.fullmatch(plain(name)) for name in names)
    except Exception:  # tarfile raises many kinds for bytes that are no tar.
        return False


def imagenet(path: pathlib.Path) -> Found:
    """Splits "train" and "validation" of ILSVRC2012; classes are the wnids, sorted.

    Indexing reads every header of the tars, minutes for the whole set. Raises
    `InputError` for a tar that is cut short, or a val tar without its devkit.
    """
    folder = path if path.is_dir() else path.parent
    train_tar, val_tar = folder / TRAIN if path.is_dir() else path, folder / VAL
    rejected: list[tuple[str, str]] = []
    notes, splits = [], {}
    devkit = read_devkit(folder / DEVKIT) if val_tar.is_file() else None
    if train_tar.is_file():
        chunks = _train_chunks(train_tar, rejected)
        class_names = sorted(set(chunks))
        if devkit and class_names != devkit.class_names:
            odd = sorted(set(class_names) ^ set(devkit.class_names))[0]
            raise InputError(
                f"{train_tar} holds {len(class_names)} classes, and {DEVKIT} names"
                f" {len(devkit.class_names)}: {odd} is in one only; {REMEDY}"
            )
        labels = [
            np.full(len(chunks[wnid].names), label, np.int32)
            for label, wnid in enumerate(class_names)
        ]
        whole = _joined([chunks[wnid] for wnid in class_names])
        splits["train"] = _listing(train_tar, whole, np.concatenate(labels), rejected)
    else:
        notes.append(f"there is no split train: {TRAIN} is not in {folder}")
    if devkit:
        class_names = devkit.class_names
        chunk, labels_of_val = _val_chunk(val_tar, devkit.labels, rejected)
        splits["validation"] = _listing(val_tar, chunk, labels_of_val, rejected)
    else:
        notes.append(f"there is no split validation: {VAL} is not in {folder}")
    if not splits:
        raise InputError(f"{path} holds neither {TRAIN} nor {VAL}; give their folder")
    return Found("ILSVRC2012's tars", tuple(class_names), 3, splits, rejected, notes)


class _Chunk(NamedTuple):
    """Some files of a tar. names: [n] bytes; starts, sizes: [n] int64, where they lie."""

    names: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray


def _train_chunks(path: pathlib.Path, rejected: list[tuple[str, str]]) -> dict[str, _Chunk]:
    """The images of each wnid in the tar of tars."""
    chunks: dict[str, _Chunk] = {}
    with _open(path) as file:
        for name, outer, content in files(file, f"{path}", rejected, remedy=REMEDY):
            if content is None:
                continue
            match = CLASS_TAR.fullmatch(name)
            if not match:
                rejected.append((name, "not the tar of a class, such as n01440764.tar"))
                continue
            wnid, where, refused = match[1], f"{path}: {name}", list[tuple[str, str]]()
            found = [
                (f"{wnid}/{inner}", outer.offset_data + member.offset_data, member.size)
                for inner, member, is_file in files(
                    content, where, refused, nested=True, remedy=REMEDY
                )
                if is_file
            ]
            rejected += [(f"{wnid}/{inner}", reason) for inner, reason in refused]
            here = [chunks[wnid]] if wnid in chunks else []
            chunks[wnid] = _joined([*here, _chunk(found)])
    if not chunks:
        raise InputError(f"{path} holds no tar such as n01440764.tar; {REMEDY}")
    return chunks


def _val_chunk(
    path: pathlib.Path, truth: np.ndarray, rejected: list[tuple[str, str]]
) -> tuple[_Chunk, np.ndarray]:
    """The val images with their labels; the number in a name is its line in the truth."""
    found, lines = [], []
    with _open(path) as file:
        for name, member, is_file in files(file, f"{path}", rejected, remedy=REMEDY):
            match = VAL_IMAGE.fullmatch(name)
            if not is_file:
                continue
            if match:
                found.append((name, member.offset_data, member.size))
                lines.append(int(match[1]) - 1)
            else:
                rejected.append((name, "not named as ILSVRC2012_val_00000001.JPEG"))
    if sorted(set(lines)) != list(range(len(truth))):
        raise InputError(
            f"{path} holds {len(set(lines))} images, and {DEVKIT} labels {len(truth)},"
            f" numbered from 1; {REMEDY}"
        )
    return _chunk(found), truth[lines]


def _chunk(found: list[tuple[str, int, int]]) -> _Chunk:
    names = [name.encode("utf-8", "surrogateescape") for name, _, _ in found]
    places = np.array([place for _, *place in found], np.int64).reshape(-1, 2)
    return _Chunk(np.array(names, np.bytes_), places[:, 0], places[:, 1])


def _joined(chunks: list[_Chunk]) -> _Chunk:
    return _Chunk(*(np.concatenate(column) for column in zip(*chunks, strict=True)))


def _listing(
    path: pathlib.Path, chunk: _Chunk, labels: np.ndarray, rejected: list[tuple[str, str]]
) -> Listing:
    """The files in order of name, each name once."""
    if not len(labels):
        raise InputError(f"{path} holds no image; {REMEDY}")
    names, order = np.unique(chunk.names, return_index=True)
    for index in np.setdiff1d(np.arange(len(labels)), order):
        name = chunk.names[index].decode("utf-8", "surrogateescape")
        rejected.append((name, "a second file of this name; the first is taken"))
    read = Reader(path, chunk.starts[order], chunk.sizes[order])
    return Listing(names, labels[order].astype(np.int32), read)


def _open(path: pathlib.Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); allow it") from None
