"""Pretrained weights: files of several kinds, local or on a Hugging Face hub."""

from jaxcls.models.weights.facts import Preprocessing
from jaxcls.models.weights.files import Weights, is_hub, preprocessing, read, write

__all__ = ["Preprocessing", "Weights", "is_hub", "preprocessing", "read", "write"]
