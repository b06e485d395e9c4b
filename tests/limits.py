"""Limits of this process that make a write fail, as a full disk or a busy machine does."""

import contextlib
import resource


@contextlib.contextmanager
def files_of_at_most(size):
    """Writing more than `size` bytes to a file fails, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
