"""jaxcls: a pure-function image-classification trainer for JAX.

Importing this package starts no device and imports no TensorFlow; the modules
do the work: ``from jaxcls import config, experiment, train``.
"""

__version__ = "0.1.0"
