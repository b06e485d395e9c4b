"""jaxcls: a pure-function image-classification trainer for JAX.

Importing this package starts no device and imports no TensorFlow. Each package does
one thing, and imports only packages above it in the table of docs/architecture.md.
"""

from jaxcls.version import __version__

__all__ = ["__version__"]
