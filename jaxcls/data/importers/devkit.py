"""Reads the development kit of ILSVRC2012: its classes and the labels of its val images."""

import importlib
import io
import pathlib
import tarfile
import zlib
from typing import NamedTuple

import numpy as np

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


def read_devkit(path: pathlib.Path) -> Devkit:
    """Reads the kit in the tar.gz at `path`; raises `InputError` if missing or damaged."""
    if not path.is_file():
        raise InputError(
            f"{path} is missing, and labels the val images; download it from"
            " https://image-net.org into that folder"
        )
    contents = _contents(path)
    wnids = _wnids(contents[META], f"{path}: {META}")
    class_names = sorted(wnids.values())
    labels = {str(number): class_names.index(wnid) for number, wnid in wnids.items()}
    lines = contents[TRUTH].decode("ascii", "replace").split()
    for number, line in enumerate(lines, 1):
        if line not in labels:
            raise InputError(f"{path}: {TRUTH}:{number} is {line!r}, no class; {REMEDY}")
    return Devkit(class_names, np.array([labels[line] for line in lines], np.int32))


def _contents(path: pathlib.Path) -> dict[str, bytes]:
    contents = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                for name in (META, TRUTH):
                    if member.isreg() and f"/{member.name}".endswith(f"/{name}"):
                        with tar.extractfile(member) or io.BytesIO() as file:
                            contents[name] = file.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{path} cannot be read ({error}); {REMEDY}") from None
    for name in (META, TRUTH):
        if name not in contents:
            raise InputError(f"{path} lacks {name}; {REMEDY}")
    return contents


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
