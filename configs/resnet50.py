"""ImageNet-1k with ResNet-50 v1.5, 90 epochs.

He et al., arXiv:1512.03385, trained as NVIDIA's DeepLearningExamples train it: rate
0.256 for each 256 images, 8 epochs of warm-up, cosine, momentum 0.875, weight decay
1/32768 on all but BatchNorm, label smoothing 0.1; He's initialisation by fan-in, every
scale 1; BatchNorm over 256 images, as each of their eight GPUs has them.

Data: imagenet2012 prepared by TFDS as ArrayRecord in --config.data.dir. The last 1 % of
the training images (12,812) select the best checkpoint; the 50,000 validation images
are scored once, at the end.
Cost: 55,738 steps of 2048 images, 24.5 GFLOP an image forward and backward; at the
rates that NVIDIA published for its own trainer, 1.9 h on 8 A100, 3.8 h on 8 V100.
Expected: 77.12 +- 0.11 % top-1 on the validation set, as NVIDIA states it for mixed
precision on 8 A100, trained on all of the training images; of how many runs is not said
(DeepLearningExamples, PyTorch, ResNet50 v1.5, 90 epochs). Not yet run to the end here.

    python -m jaxcls.main --config=configs/resnet50.py --config.data.dir=DIR

Deviations:
- Their rate changes once an epoch, (epoch + 1) / 8 of the peak in the warm-up; here it
  rises at every step, from an eighth, with the same mean over the warm-up.
- Their head starts by PyTorch's default, uniform, with 0.58 of the deviation here.
- The running statistics are means over the eight groups; theirs are one GPU's.
- The last 1 % of the training images selects and does not train; the published number
  trained on all.
- The last partial batch of an epoch is not dropped, as theirs is: positions run on
  across epochs.
"""

from ml_collections import ConfigDict

from jaxcls.config import base


def get_config() -> ConfigDict:
    c = base()
    c.batch_size = 2048
    c.length = "90 epochs"
    c.model.name = "resnet50(zero_init=False, weight_init='fan_in')"
    c.model.batch_norm_groups = 8
    c.data.name = "imagenet2012"
    c.data.train = "train[:99%]"
    c.data.eval = "train[99%:]"
    c.data.test = "validation"
    c.data.train_ops = "decode | random_resized_crop(224, filter='bilinear')"
    c.data.eval_ops = "decode | resize_short(256, rounding='truncate') | center_crop(224)"
    c.augment = "flip"
    c.normalize = "imagenet"
    c.eval.metrics = "top1 | topk(5)"
    c.loss.smoothing = 0.1
    c.optim.name = "sgd(momentum=0.875, nesterov=False)"
    c.optim.lr = 0.256
    c.optim.lr_per = 256
    c.optim.weight_decay = 1 / 32768
    c.optim.decay_on = "kernel$|^head/"  # As there, the head's bias too.
    c.optim.schedule = "cosine"
    c.optim.warmup = "8 epochs"
    c.optim.warmup_from = 1 / 8
    return c
