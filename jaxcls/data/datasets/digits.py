"""scikit-learn's 1,797 real handwritten digits, 8x8 grey, as a TFDS dataset.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

# The last digits of the file are harder and from other writers, so a seeded permutation
# makes both splits.
SPLIT_SEED = 0
TRAIN = 1437


class Digits(tfds.core.GeneratorBasedBuilder):
    """``train`` (1,437) and ``test`` (360); images are PNG, grey 0..16 spread to 0..255."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of scikit-learn's load_digits.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(d) for d in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        n = 1797
        random = np.random.Philox(key=[SPLIT_SEED, 0]).random_raw(n)
        permutation = np.argsort(random, kind="stable")
        return {
            "train": self._generate_examples(permutation[:TRAIN]),
            "test": self._generate_examples(permutation[TRAIN:]),
        }

    def _generate_examples(self, ids: np.ndarray) -> Iterator[tuple[str, dict[str, Any]]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        for i in ids.tolist():
            pixels = np.rint(digits.images[i] * (255 / 16)).astype(np.uint8)
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            yield f"{i:04d}", {"image": png.getvalue(), "label": int(digits.target[i])}
