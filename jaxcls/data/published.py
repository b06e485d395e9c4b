"""Published counts of well-known datasets, and where to download the original files."""

from typing import NamedTuple

from jaxcls.errors import InputError


class Published(NamedTuple):
    """Counts that a dataset's authors state, for --dry_run.

    They are checked against the data.
    """

    image_shape: tuple[int | None, int | None, int]
    num_classes: int
    splits: dict[str, int]


PUBLISHED = {
    "digits": Published((8, 8, 1), 10, {"train": 1437, "test": 360}),
    "mnist": Published((28, 28, 1), 10, {"train": 60_000, "test": 10_000}),
    "fashion_mnist": Published((28, 28, 1), 10, {"train": 60_000, "test": 10_000}),
    "cifar10": Published((32, 32, 3), 10, {"train": 50_000, "test": 10_000}),
    "cifar100": Published((32, 32, 3), 100, {"train": 50_000, "test": 10_000}),
    "imagenet2012": Published(
        (None, None, 3), 1000, {"train": 1_281_167, "validation": 50_000}
    ),
}


# How to get the original files of a dataset; `prepare` reads them unchanged.
_GET = "into a FOLDER and run"
ORIGINALS = {
    "imagenet2012": "download ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and"
    f" ILSVRC2012_devkit_t12.tar.gz from https://image-net.org {_GET}",
    "cifar10": "download cifar-10-python.tar.gz from"
    f" https://www.cs.toronto.edu/~kriz/cifar.html {_GET}",
    "cifar100": "download cifar-100-python.tar.gz from"
    f" https://www.cs.toronto.edu/~kriz/cifar.html {_GET}",
    "mnist": f"download MNIST's four idx files {_GET}",
    "fashion_mnist": "download the four idx files from"
    f" https://github.com/zalandoresearch/fashion-mnist {_GET}",
}


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
