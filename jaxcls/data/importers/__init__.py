"""Lists the encoded images of a folder or an archive; one module per kind of source."""

import os
import pathlib

from jaxcls.data.importers.cifar import cifar, is_cifar
from jaxcls.data.importers.folders import folders
from jaxcls.data.importers.idx import idx, is_idx
from jaxcls.data.importers.imagenet import imagenet, is_imagenet
from jaxcls.data.importers.listing import ImageSource
from jaxcls.errors import InputError

# Test for a kind of source -> its importer, in the order of the tests. These kinds have
# splits. The importer `folders` takes every other source.
IMPORTERS = {is_cifar: cifar, is_idx: idx, is_imagenet: imagenet}


def open_source(
    path: pathlib.Path, scratch: pathlib.Path, val_fraction: float
) -> ImageSource:
    """Lists the images of a folder or an archive; `scratch`: a folder to unpack into.

    Raises `InputError` for an unknown or damaged source, or if `val_fraction` is given for
    a source with splits.
    """
    if not (os.path.isdir(path) or os.path.isfile(path)):  # Opening a pipe would block.
        raise InputError(f"--source={path} is not there; give a folder or an archive")
    if not os.access(path, os.R_OK):
        raise InputError(f"--source={path} cannot be read (Permission denied); allow it")
    for recognise, load in IMPORTERS.items():
        if recognise(path):
            if val_fraction:
                raise InputError(
                    f"--val_fraction={val_fraction}: {path} has splits of its own; leave"
                    " the flag out, and use data.eval='train[90%:]'"
                )
            return load(path, scratch)
    return folders(path, scratch, val_fraction)
