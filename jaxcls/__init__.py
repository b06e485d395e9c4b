"""jaxcls: a pure-function image-classification trainer for JAX.

Importing this package starts no device and imports no TensorFlow; the modules
do the work: ``from jaxcls import config, experiment, train``.
"""

from jaxcls.version import __version__

__all__ = ["__version__"]
