"""Published counts of well-known datasets, and where to download the original files."""

import functools
import importlib.resources
from typing import NamedTuple

from jaxcls.errors import InputError


class Facts(NamedTuple):
    """The sizes and classes of a dataset.

    image_shape: (H, W, C), with None where images differ. fingerprint: digest of the
    content, from the manifest that `prepare` writes, or "".
    """

    name: str
    version: str
    image_shape: tuple[int | None, int | None, int]
    num_classes: int
    class_names: tuple[str, ...]
    splits: dict[str, int]
    fingerprint: str = ""


# Counts that a dataset's authors state, for --dry_run. They are checked against the data.
_MNIST = Facts("mnist", "", (28, 28, 1), 10, (), {"train": 60_000, "test": 10_000})
_CIFAR = Facts("cifar10", "", (32, 32, 3), 10, (), {"train": 50_000, "test": 10_000})
_IMAGENET = {"train": 1_281_167, "validation": 50_000}
PUBLISHED = {
    "digits": Facts("digits", "", (8, 8, 1), 10, (), {"train": 1437, "test": 360}),
    "mnist": _MNIST,
    "fashion_mnist": _MNIST._replace(name="fashion_mnist"),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR._replace(name="cifar100", num_classes=100),
    "imagenet2012": Facts("imagenet2012", "", (None, None, 3), 1000, (), _IMAGENET),
}
# The original files of a dataset; `prepare` reads them unchanged.
_CIFAR_AT = "from https://www.cs.toronto.edu/~kriz/cifar.html"
ORIGINALS = {
    "imagenet2012": "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and"
    " ILSVRC2012_devkit_t12.tar.gz from https://image-net.org",
    "cifar10": f"cifar-10-python.tar.gz {_CIFAR_AT}",
    "cifar100": f"cifar-100-python.tar.gz {_CIFAR_AT}",
    "mnist": "MNIST's four idx files",
    "fashion_mnist": "the idx files of https://github.com/zalandoresearch/fashion-mnist",
}


@functools.cache
def imagenet_synsets() -> tuple[str, ...]:
    """Returns the 1,000 classes of ILSVRC2012, such as "n01440764", sorted.

    torchvision, timm, Keras and TFDS number the classes in this order.
    """
    place = importlib.resources.files("tensorflow_datasets") / "datasets/imagenet2012"
    return tuple((place / "labels.txt").read_text().split())


def check(name: str, splits: dict[str, int], key: str) -> None:
    """Raises `InputError` if a split of a dataset differs from its published count.

    key: the config key or flag of `name`.
    """
    known = PUBLISHED.get(name)
    for split, n in known.splits.items() if known else ():
        if splits.get(split) != n:
            raise InputError(
                f"{key}={name!r}: split {split} holds {splits.get(split, 0)} examples, and"
                f" {n} were published; prepare it again, or under another name if it is"
                " another set"
            )
