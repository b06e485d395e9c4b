"""What people have -> listings of encoded images; one file a kind of source."""

import os
import pathlib

from jaxcls.data.importers.arrays import cifar, idx, is_cifar, is_idx
from jaxcls.data.importers.folders import folders
from jaxcls.data.importers.imagenet import imagenet, is_imagenet
from jaxcls.data.importers.listing import Found
from jaxcls.errors import InputError

# Sources with splits of their own, in the order they are tried; class folders come last.
KINDS = {is_cifar: cifar, is_idx: idx, is_imagenet: imagenet}


def find(path: pathlib.Path, scratch: pathlib.Path, val_fraction: float) -> Found:
    """What a folder or an archive holds; `scratch` is a folder for what is unpacked.

    Raises `InputError` for a source of no known kind, or a damaged one.
    """
    if not (os.path.isdir(path) or os.path.isfile(path)):  # A pipe would be waited for.
        raise InputError(f"--source={path} is not there; give a folder or an archive")
    if not os.access(path, os.R_OK):
        raise InputError(f"--source={path} cannot be read (Permission denied); allow it")
    for recognise, load in KINDS.items():
        if recognise(path):
            if val_fraction:
                raise InputError(
                    f"--val_fraction={val_fraction}: {path} has splits of its own; leave"
                    " the flag out, and use data.eval='train[90%:]'"
                )
            return load(path)
    return folders(path, scratch, val_fraction)
