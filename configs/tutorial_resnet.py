"""A ResNet-18 of a quarter of the width on CIFAR-10, for two cores.

He et al., arXiv:1512.03385, with 16 to 128 channels and a stem that keeps the 32 pixels:
SGD with Nesterov momentum, cosine, crops and flips, as configs/cifar10.py, for 5 epochs.

Data: cifar10 prepared by TFDS as ArrayRecord in --config.data.dir.
Cost: 1,914 steps of 128; 0.7 million parameters, 0.21 GFLOP an image forward and backward.
Expected: no published number is of this very recipe. On CIFAR-10 as JPEG files (quality 75,
colours at half the size), which is harder: 0.752 of 5,000 test images, the mean of five
seeds (0.741 to 0.761; 95 % interval 0.742 to 0.762), 24 minutes each on one busy core.

    python -m jaxcls.main --config=configs/tutorial_resnet.py --config.data.dir=DIR

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
    c.model.name = "resnet18(stem='small', width=16)"
    c.data.name = data
    c.data.train = "train[:98%]"
    c.data.eval = "train[98%:]"
    c.data.test = "test"
    c.augment = "random_crop(4) | flip"
    c.normalize = "cifar10"
    c.optim.name = "sgd(momentum=0.9, nesterov=True)"
    c.optim.lr = 0.1
    c.optim.weight_decay = 5e-4
    c.optim.schedule = "cosine"
    c.optim.warmup = "1 epochs"
    return c
