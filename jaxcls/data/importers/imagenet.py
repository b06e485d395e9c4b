"""Lists ILSVRC2012 from the tars of image-net.org; indexes them and never extracts them."""

import array
import os
import pathlib
import re
import tarfile
from typing import IO

import numpy as np

from jaxcls.data.importers.devkit import DEVKIT, REMEDY, read_devkit
from jaxcls.data.importers.listing import ImageSource, Listing, sorted_once
from jaxcls.data.importers.tars import Reader, files, plain
from jaxcls.errors import InputError

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
CLASS_TAR = re.compile(r"(n\d{8})\.tar")
VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def is_imagenet(path: pathlib.Path) -> bool:
    """Returns whether `path` is the train tar, or a folder with the train or val tar."""
    if path.is_dir():
        return any((path / name).is_file() for name in (TRAIN, VAL))
    try:
        if not path.is_file():
            return False
        with tarfile.open(path, "r:") as tar:
            # A tar may begin with the folder './'.
            names = [member.name for member in (tar.next(), tar.next()) if member]
            return any(CLASS_TAR.fullmatch(plain(name)) for name in names)
    except Exception:  # tarfile raises many exception types for other files.
        return False


def imagenet(path: pathlib.Path, scratch: pathlib.Path) -> ImageSource:
    """Lists splits "train" and "validation" of ILSVRC2012; classes are the wnids, sorted.

    It reads every header of the tars, which takes minutes for the whole set. Raises
    `InputError` for a truncated tar, or a val tar without its devkit.
    """
    folder = path if path.is_dir() else path.parent
    train_tar, val_tar = folder / TRAIN if path.is_dir() else path, folder / VAL
    rejected: list[tuple[str, str]] = []
    notes, splits = [], {}
    devkit = read_devkit(folder / DEVKIT, scratch) if val_tar.is_file() else None
    if train_tar.is_file():
        class_names, splits["train"] = _train(train_tar, rejected)
        if devkit and class_names != devkit.class_names:
            odd = sorted(set(class_names) ^ set(devkit.class_names))[0]
            raise InputError(
                f"{train_tar} holds {len(class_names)} classes, and {DEVKIT} names"
                f" {len(devkit.class_names)}: {odd} is in one only; {REMEDY}"
            )
    else:
        notes.append(f"there is no split train: {TRAIN} is not in {folder}")
    if devkit:
        class_names = devkit.class_names
        splits["validation"] = _val(val_tar, devkit.labels, rejected)
    else:
        notes.append(f"there is no split validation: {VAL} is not in {folder}")
    return ImageSource("ILSVRC2012's tars", tuple(class_names), 3, splits, rejected, notes)


def _train(
    path: pathlib.Path, rejected: list[tuple[str, str]]
) -> tuple[list[str], Listing]:
    """Returns the wnids in the tar of tars, sorted, and the listing of all its images."""
    names, places, wnids = list[bytes](), array.array("q"), set[str]()
    with _open(path) as file:
        for name, outer, content in files(file, f"{path}", rejected, remedy=REMEDY):
            if content is None:
                continue
            match = CLASS_TAR.fullmatch(name)
            if not match:
                rejected.append((name, "not the tar of a class, such as n01440764.tar"))
                continue
            wnid, where, refused = match[1], f"{path}: {name}", list[tuple[str, str]]()
            wnids.add(wnid)
            for inner, member, is_file in files(
                content, where, refused, nested=True, remedy=REMEDY
            ):
                if is_file:
                    names.append(os.fsencode(f"{wnid}/{inner}"))
                    places.extend((outer.offset_data + member.offset_data, member.size))
            rejected += [(f"{wnid}/{inner}", reason) for inner, reason in refused]
    if not wnids:
        raise InputError(f"{path} holds no tar such as n01440764.tar; {REMEDY}")
    if not names:
        raise InputError(f"{path} holds no image; {REMEDY}")
    class_names = sorted(wnids)
    listing = _listing(path, names, places, rejected)
    wnid_of = listing.names.astype("S9")  # The first nine bytes of each name.
    labels = np.searchsorted(np.array(class_names, "S9"), wnid_of).astype(np.int32)
    return class_names, listing._replace(labels=labels)


def _val(path: pathlib.Path, truth: np.ndarray, rejected: list[tuple[str, str]]) -> Listing:
    """Lists the val images; an image's number is its line in the ground truth."""
    names, places = list[bytes](), array.array("q")
    with _open(path) as file:
        for name, member, is_file in files(file, f"{path}", rejected, remedy=REMEDY):
            if is_file and VAL_IMAGE.fullmatch(name):
                names.append(os.fsencode(name))
                places.extend((member.offset_data, member.size))
            elif is_file:
                rejected.append((name, "not named as ILSVRC2012_val_00000001.JPEG"))
    listing = _listing(path, names, places, rejected)
    # Sorted by name, the images are sorted by number too.
    numbers = [int(name[-13:-5]) for name in listing.names]
    if numbers != list(range(1, len(truth) + 1)):
        raise InputError(
            f"{path} holds {len(numbers)} images, and {DEVKIT} labels {len(truth)},"
            f" numbered from 1; {REMEDY}"
        )
    return listing._replace(labels=truth)


def _listing(
    path: pathlib.Path,
    names: list[bytes],
    places: "array.array[int]",
    rejected: list[tuple[str, str]],
) -> Listing:
    """Lists the files of a tar without labels; places: the start and the size of each."""
    kept, order = sorted_once(names, rejected)
    return Listing(kept, np.zeros(0, np.int32), Reader(path, places, order))


def _open(path: pathlib.Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); allow it") from None
