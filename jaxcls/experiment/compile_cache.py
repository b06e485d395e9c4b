"""A cache folder of compiled programs, shared by successive starts.

A user who can write the folder can run code in every process that reads it. So it must be
private, and no run's folder names one. The cache does not change the programs: a run stays
a function of its inputs.
"""

import hashlib
import json
import os
import pathlib

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxcls.errors import InputError
from jaxcls.runs import provenance

KEY = "compile.cache"


def use(folder: str) -> None:
    """Reads and writes all compiled programs in `folder` from now on.

    It creates the folder if need be, for its owner alone. Raises `InputError` if it cannot
    create the folder, or another user owns it or may write it.
    """
    if "://" in folder:
        raise InputError(f"{KEY}={folder} is a URL, and must be a folder; try {_GOOD}")
    path = pathlib.Path(folder).expanduser().absolute()
    # JAX's key leaves out the CPU's threads and instruction set, which XLA compiles for.
    digest = hashlib.sha256(json.dumps(provenance.cpu()).encode()).hexdigest()[:16]
    for each in (path, path / digest):
        _make_private(each, folder)
    jax.config.update("jax_compilation_cache_dir", str(path / digest))
    # All programs, however small: a run has some hundred.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # With XLA's own caches, which hold parts of programs, other programs would result.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    compilation_cache.reset_cache()  # An earlier compilation may have fixed another cache.


_GOOD = "~/.cache/jaxcls"


def _make_private(path: pathlib.Path, given: str) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise InputError(
            f"{KEY}={given}: {path} cannot be made ({error.strerror}); try {_GOOD}"
        ) from None
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise InputError(
            f"{KEY}={given}: {path} belongs to another user or may be written by others"
            f" (mode {status.st_mode & 0o777:o}), who could run code here through it; name"
            f" a new folder, such as {_GOOD}"
        )
