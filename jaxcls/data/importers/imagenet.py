"""Lists ILSVRC2012 from the tars of image-net.org; indexes them and never extracts them."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np

from jaxcls.data.importers.listing import ImageSource, Listing
from jaxcls.data.importers.trees import Tree, of_tar, open_tree
from jaxcls.errors import InputError

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
CLASS_TAR = re.compile(r"(n\d{8})\.tar")
TRAIN_IMAGE = re.compile(rb"n\d{8}/.+", re.DOTALL)
VAL_IMAGE = re.compile(rb"ILSVRC2012_val_\d{8}\.JPEG")
REMEDY = "download it again from https://image-net.org"
# Prints the leaf synsets of a .mat file. A process of its own: a damaged file can end the
# process that SciPy reads it in.
_LEAVES = """
import io, json, sys
import numpy as np
from scipy.io import loadmat
content = loadmat(io.BytesIO(sys.stdin.buffer.read()), squeeze_me=True)
leaves = [
    (int(synset["ILSVRC2012_ID"]), str(synset["WNID"]))
    for synset in np.atleast_1d(content["synsets"])
    if int(synset["num_children"]) == 0
]
print(json.dumps(leaves))
"""


def imagenet(path: pathlib.Path, scratch: pathlib.Path) -> ImageSource | None:
    """Lists splits "train" and "validation" of ILSVRC2012; classes are the wnids, sorted.

    Returns None unless `path` is a folder with the train tar or the val tar. It reads every
    header of the tars, which takes minutes for the whole set. Raises `InputError` for a
    truncated tar, or a val tar without its devkit.
    """
    train_tar, val_tar = path / TRAIN, path / VAL
    if not (train_tar.is_file() or val_tar.is_file()):
        return None
    rejected: list[tuple[str, str]] = []
    notes, splits, named = [], {}, None
    if val_tar.is_file():
        named, truth = _devkit(path / DEVKIT, scratch)
    if train_tar.is_file():
        class_names, splits["train"] = _train(train_tar, rejected)
        if named and class_names != named:
            odd = sorted(set(class_names) ^ set(named))[0]
            raise InputError(
                f"{train_tar} holds {len(class_names)} classes, and {DEVKIT} names"
                f" {len(named)}: {odd} is in one only; {REMEDY}"
            )
    else:
        notes.append(f"there is no split train: {TRAIN} is not in {path}")
    if named:
        class_names = named
        splits["validation"] = _val(val_tar, truth, rejected)
    else:
        notes.append(f"there is no split validation: {VAL} is not in {path}")
    return ImageSource("ILSVRC2012's tars", tuple(class_names), 3, splits, rejected, notes)


def _train(
    path: pathlib.Path, rejected: list[tuple[str, str]]
) -> tuple[list[str], Listing]:
    """Returns the wnids in the tar of tars, sorted, and the listing of all its images."""
    tree = _open(path, nested=CLASS_TAR)
    folders = map(os.fsdecode, tree.folders)
    class_names = sorted(name for name in folders if CLASS_TAR.fullmatch(f"{name}.tar"))
    if not class_names:
        raise InputError(f"{path} holds no tar such as n01440764.tar; {REMEDY}")
    rule = "not the tar of a class, such as n01440764.tar"
    listing = _images(tree, TRAIN_IMAGE, rule, rejected)
    wnids = np.array(class_names, "S9")
    # The first nine bytes of a name are its class; a file of no class's tar has another.
    is_known = np.isin(listing.names.astype("S9"), wnids)
    rejected += [(os.fsdecode(name), rule) for name in listing.names[~is_known]]
    listing = listing.subset(np.flatnonzero(is_known))
    if not len(listing.names):
        raise InputError(f"{path} holds no image; {REMEDY}")
    labels = np.searchsorted(wnids, listing.names.astype("S9"))
    return class_names, listing._replace(labels=labels.astype(np.int32))


def _val(path: pathlib.Path, truth: np.ndarray, rejected: list[tuple[str, str]]) -> Listing:
    """Lists the val images; an image's number is its line in the ground truth."""
    rule = "not named as ILSVRC2012_val_00000001.JPEG"
    listing = _images(_open(path), VAL_IMAGE, rule, rejected)
    # Sorted by name, the images are sorted by number too.
    numbers = [int(name[-13:-5]) for name in listing.names]
    if numbers != list(range(1, len(truth) + 1)):
        raise InputError(
            f"{path} holds {len(numbers)} images, and {DEVKIT} labels {len(truth)},"
            f" numbered from 1; {REMEDY}"
        )
    return listing._replace(labels=truth)


def _open(path: pathlib.Path, nested: re.Pattern[str] | None = None) -> Tree:
    try:
        return of_tar(path, f"{path}", REMEDY, nested)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); allow it") from None


def _images(
    tree: Tree, form: re.Pattern[bytes], rule: str, rejected: list[tuple[str, str]]
) -> Listing:
    """Lists the files whose names have a form; rejects the others by the rule."""
    is_image = np.array([bool(form.fullmatch(name)) for name in tree.names], bool)
    rejected += tree.rejected
    rejected += [(os.fsdecode(name), rule) for name in tree.names[~is_image]]
    labels = np.zeros(len(tree.names), np.int32)
    return Listing(tree.names, labels, tree.read).subset(np.flatnonzero(is_image))


def _devkit(path: pathlib.Path, scratch: pathlib.Path) -> tuple[list[str], np.ndarray]:
    """Reads the development kit, which it unpacks into folder `scratch`.

    Returns the wnids, sorted, and the labels [n] int32 of val images 1, 2, ... Raises
    `InputError` if the kit is missing or damaged.
    """
    if not path.is_file():
        raise InputError(
            f"{path} is missing, and labels the val images; download it from"
            " https://image-net.org into that folder"
        )
    tree = open_tree(path, scratch)
    meta, truth = (tree.content(name, f"{path}", REMEDY) for name in (META, TRUTH))
    wnids = _wnids(meta, f"{path}: {META}")
    class_names = sorted(wnids.values())
    labels = {str(number): class_names.index(wnid) for number, wnid in wnids.items()}
    lines = truth.decode("ascii", "replace").split()
    for number, line in enumerate(lines, 1):
        if line not in labels:
            raise InputError(f"{path}: {TRUTH}:{number} is {line!r}, no class; {REMEDY}")
    return class_names, np.array([labels[line] for line in lines], np.int32)


def _wnids(meta: bytes, where: str) -> dict[int, str]:
    """Returns ILSVRC2012_ID -> WNID of the leaf synsets; only leaves hold images."""
    command = [sys.executable, "-P", "-c", _LEAVES]
    done = subprocess.run(command, input=meta, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = said[-1][:200] if said else f"its reader died, {done.returncode}"
        raise InputError(f"{where} is damaged ({reason}); {REMEDY}")
    wnids = {number: wnid for number, wnid in json.loads(done.stdout)}
    if not wnids or len(set(wnids.values())) < len(wnids):
        raise InputError(f"{where} names no class, or one twice; {REMEDY}")
    return wnids
