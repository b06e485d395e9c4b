"""Models of image classification, their layers, their names in other libraries and weights.

MODELS holds every model by its name in a config: ``(num_classes, dtype, **options) ->
Classifier``. A new model is a file of this package and a line in MODELS. A new variant is a
line in its family's table. Variants have torchvision's names, or names in torchvision's
style.
"""

from jaxcls.models.creating import create
from jaxcls.models.layers import Output
from jaxcls.models.table import MODELS, Classifier

__all__ = ["MODELS", "Classifier", "Output", "create"]
