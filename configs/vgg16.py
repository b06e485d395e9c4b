"""ImageNet-1k with VGG-16, 90 epochs.

Simonyan and Zisserman, arXiv:1409.1556, with the schedule that torchvision's weights were
trained by: SGD at 0.01, a tenth of it after every 30 epochs. `--config.model.name=vgg16_bn
--config.optim.lr=0.1` is the form with BatchNorm.

Data: imagenet2012 prepared by TFDS as ArrayRecord in --config.data.dir. The last 1 % of
the training images (12,812) select the best checkpoint; the 50,000 validation images are
scored once, at the end.
Cost: 445,906 steps of 256 images, 92.8 GFLOP each forward and backward.
Expected: 71.6 % top-1 on the validation set, 73.4 % with BatchNorm (torchvision's weights,
single runs on all of the training images). Not yet run to the end here.

    python -m jaxcls.main --config=configs/vgg16.py --config.data.dir=DIR

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
    c.model.name = "vgg16"
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
