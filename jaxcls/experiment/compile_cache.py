"""Compiled programs kept in a folder from one start to the next.

Who can write such a folder can run code in every process that reads it, so it must be
private, and no run's folder names one. The same programs run as without it: a run stays
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
    """From now on read every compiled program from `folder`, or compile and keep it there.

    folder: made if need be, for its owner alone. Raises `InputError` where it cannot be
    made, or another user owns it or may write it.
    """
    if "://" in folder:
        raise InputError(f"{KEY}={folder} is a URL, and must be a folder; try {_GOOD}")
    path = pathlib.Path(folder).expanduser().absolute()
    # JAX's key leaves out what XLA compiles for on a CPU: its threads and instructions.
    digest = hashlib.sha256(json.dumps(provenance.cpu()).encode()).hexdigest()[:16]
    for each in (path, path / digest):
        _make_private(each, folder)
    jax.config.update("jax_compilation_cache_dir", str(path / digest))
    # All programs, however small: those of a run are some hundred.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # XLA's own caches hold parts of programs: others would be compiled than without them.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    compilation_cache.reset_cache()  # What was compiled before has chosen another.


_GOOD = "~/.cache/jaxcls"


def _make_private(path: pathlib.Path, given: str) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise InputError(
            f"{KEY}={given}: {path} cannot be made ({error.strerror}); try {_GOOD}"
        ) from None
    if status.st_uid != os.getuid():
        what = "belongs to another user"
    elif status.st_mode & 0o022:
        what = f"may be written by others (mode {status.st_mode & 0o777:o})"
    else:
        return
    raise InputError(
        f"{KEY}={given}: {path} {what}, who could run code here through it; name a new"
        f" folder, such as {_GOOD}"
    )
