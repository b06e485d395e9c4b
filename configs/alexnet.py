"""ImageNet-1k with AlexNet, 90 epochs.

Krizhevsky, arXiv:1404.5997, with the schedule that torchvision's weights were trained by:
SGD at 0.01, a tenth of it after every 30 epochs.

Data: imagenet2012 prepared by TFDS as ArrayRecord in --config.data.dir. The last 1 % of
the training images (12,812) select the best checkpoint; the 50,000 validation images are
scored once, at the end.
Cost: 445,906 steps of 256 images, 4.3 GFLOP each forward and backward.
Expected: 56.5 % top-1, 79.1 % top-5 on the validation set (torchvision's weights, a
single run on all of the training images). Not yet run to the end here.

    python -m jaxcls.main --config=configs/alexnet.py --config.data.dir=DIR

Deviations:
- An epoch ends with a partial batch there; here positions run on.
- The last 1 % of the training images selects and does not train; the published number
  trained on all.
"""

from ml_collections import ConfigDict

from jaxcls.config import base


def get_config() -> ConfigDict:
    c = base()
    c.batch_size = 256
    c.length = "90 epochs"
    c.model.name = "alexnet"
    c.data.name = "imagenet2012"
    c.data.train = "train[:99%]"
    c.data.eval = "train[99%:]"
    c.data.test = "validation"
    c.data.train_ops = "decode | random_resized_crop(224, filter='bilinear')"
    c.data.eval_ops = "decode | resize_short(256, rounding='truncate') | center_crop(224)"
    c.augment = "flip"
    c.normalize = "imagenet"
    c.eval.metrics = "top1 | topk(5)"
    c.optim.name = "sgd(momentum=0.9, nesterov=False)"
    c.optim.lr = 0.01
    c.optim.weight_decay = 1e-4
    c.optim.decay_on = "."
    c.optim.schedule = "step('30 epochs', 0.1)"
    return c
