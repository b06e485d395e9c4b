"""A first net: two convolutions on CIFAR-10 with Adam, 5 epochs.

LeCun et al., 1998, in the form that most tutorials begin with: 32 and 64 filters of 3x3,
each with a 2x2 maximum, one dense layer.

Data: cifar10 prepared by TFDS as ArrayRecord in --config.data.dir.
Cost: 1,914 steps of 128, minutes on two cores.
Expected: no published number is of this very recipe; 0.684 on 5,000 test images of CIFAR-10
as JPEG files, the mean of five seeds (0.678 to 0.691), five minutes each on two cores.

    python -m jaxcls.main --config=configs/tutorial_cifar10.py --config.data.dir=DIR

Deviations:
- None: the recipe is this project's own.
"""

from ml_collections import ConfigDict

from jaxcls.config import base
from jaxcls.errors import lookup


def get_config(data: str = "cifar10") -> ConfigDict:
    """data: cifar10, or cifar10_jpeg, the same images as JPEG files."""
    lookup({"cifar10": 1, "cifar10_jpeg": 1}, data, "data")
    c = base()
    c.batch_size = 128
    c.length = "5 epochs"
    c.model.name = "cnn(widths=(32, 64), dense=128)"
    c.data.name = data
    c.data.train = "train[:98%]"
    c.data.eval = "train[98%:]"
    c.data.test = "test"
    c.optim.name = "adam"
    c.optim.lr = 1e-3
    c.optim.schedule = "constant"
    return c
