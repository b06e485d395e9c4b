"""Models of image classification, their layers, their names in other libraries and weights.

The first use of `MODELS` or `Classifier` imports `table`. Reading a file of weights thus
needs no jax.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxcls.models.table import MODELS, Classifier
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from jaxcls.models import table

        return getattr(table, name)


__all__ = ["MODELS", "Classifier"]
