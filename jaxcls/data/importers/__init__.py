"""Lists the encoded images of a folder or an archive; one module per kind of source."""

import os
import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxcls.config.plugins import NONE, Plugins
from jaxcls.data.importers.cifar import cifar
from jaxcls.data.importers.folders import folders
from jaxcls.data.importers.idx import idx
from jaxcls.data.importers.imagenet import imagenet
from jaxcls.data.importers.listing import ImageSource
from jaxcls.errors import InputError

# (path, a folder to unpack into) -> the source, or None if it is of another kind. These
# kinds have splits. The importer `folders` takes every other source.
Importer = Callable[[pathlib.Path, pathlib.Path], ImageSource | None]
IMPORTERS: Mapping[str, Importer] = MappingProxyType(
    {"cifar": cifar, "idx": idx, "imagenet": imagenet}
)


def open_source(
    path: pathlib.Path,
    scratch: pathlib.Path,
    val_fraction: float,
    plugins: Plugins = NONE,
    test_fraction: float = 0.0,
) -> ImageSource:
    """Lists the images of a folder or an archive; `scratch`: a folder to unpack into.

    plugins: what is tried before our own importers. Raises `InputError` for an unknown or
    damaged source, or if a fraction is given for a source with splits.
    """
    if not (os.path.isdir(path) or os.path.isfile(path)):  # Opening a pipe would block.
        raise InputError(f"--source={path} is not there; give a folder or an archive")
    if not os.access(path, os.R_OK):
        raise InputError(f"--source={path} cannot be read (Permission denied); allow it")
    table = plugins.added_to("IMPORTERS", IMPORTERS)
    for name in [*plugins.tables.get("IMPORTERS", ()), *IMPORTERS]:
        found = table[name](path, scratch)
        if found is None:
            continue
        if not isinstance(found, ImageSource):
            raise InputError(
                f"--plugins: the importer {name!r} gives {type(found).__name__}, and must"
                " give a jaxcls.data.importers.listing.ImageSource, or None"
            )
        if val_fraction or test_fraction:
            flag = "val" if val_fraction else "test"
            raise InputError(
                f"--{flag}_fraction={val_fraction or test_fraction}: {path} has splits of"
                " its own; leave"
                " the flag out, and use data.eval='train[90%:]'"
            )
        return found
    return folders(path, scratch, val_fraction, test_fraction)
