"""Models: families by their names in a config, their layers, names and weights elsewhere.

`MODELS` and `Classifier` come from `table`, which is imported when they are asked for:
reading a file of weights needs no jax.
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
