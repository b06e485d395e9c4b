"""Reads the development kit of ILSVRC2012: its classes and the labels of its val images."""

import importlib
import io
import pathlib
from typing import NamedTuple

import numpy as np

from jaxcls.data.importers.trees import open_tree
from jaxcls.errors import InputError

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
REMEDY = "download it again from https://image-net.org"


class Devkit(NamedTuple):
    """The content of a development kit.

    class_names: wnids, sorted. labels: [n] int32 of val images 1, 2, ...
    """

    class_names: list[str]
    labels: np.ndarray


def read_devkit(path: pathlib.Path, scratch: pathlib.Path) -> Devkit:
    """Reads the kit in the tar.gz at `path`, which it unpacks into folder `scratch`.

    Raises `InputError` if the kit is missing or damaged.
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
    return Devkit(class_names, np.array([labels[line] for line in lines], np.int32))


def _wnids(meta: bytes, where: str) -> dict[int, str]:
    """Returns ILSVRC2012_ID -> WNID of the leaf synsets; only leaves hold images."""
    try:
        # import_module, because scipy ships no types; only this function needs it.
        loadmat = importlib.import_module("scipy.io").loadmat
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        wnids = {
            int(synset["ILSVRC2012_ID"]): str(synset["WNID"])
            for synset in synsets
            if int(synset["num_children"]) == 0
        }
    except Exception as error:  # scipy raises many exception types for bad files.
        raise InputError(f"{where} is damaged ({error!r}); {REMEDY}") from None
    if not wnids or len(set(wnids.values())) < len(wnids):
        raise InputError(f"{where} names no class, or one twice; {REMEDY}")
    return wnids
