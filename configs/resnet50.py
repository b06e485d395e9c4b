"""ImageNet-1k with ResNet-50 v1.5, 90 epochs.

He et al., arXiv:1512.03385, trained as NVIDIA's DeepLearningExamples train it: rate
0.256 for each 256 images, 8 epochs of warm-up, cosine, momentum 0.875, weight decay
1/32768 on kernels only, label smoothing 0.1.

Data: imagenet2012 prepared by TFDS as ArrayRecord in --config.data.dir. The last 1 % of
the training images (12,812) select the best checkpoint; the 50,000 validation images
are scored once, at the end.
Cost: 55,738 steps of 2048 images, 24.5 GFLOP an image forward and backward; at the
rates that NVIDIA published for its own trainer, 1.9 h on 8 A100, 3.8 h on 8 V100.
Expected: 77.1 +- 0.1 % top-1 on the validation set, NVIDIA's result on all of the
training images (DeepLearningExamples, PyTorch, ResNet50 v1.5, 90 epochs). Not yet run to
the end here.

    python -m jaxcls.main --config=configs/resnet50.py --config.data.dir=DIR
"""

from ml_collections import ConfigDict

from jaxcls.config import base


def get_config() -> ConfigDict:
    c = base()
    c.batch_size = 2048
    c.length = "90 epochs"
    c.model.name = "resnet50"
    c.data.name = "imagenet2012"
    c.data.train = "train[:99%]"
    c.data.eval = "train[99%:]"
    c.data.test = "validation"
    c.data.train_ops = "decode | random_resized_crop(224)"
    c.data.eval_ops = "decode | resize_short(256) | center_crop(224)"
    c.augment = "flip"
    c.normalize = "imagenet"
    c.eval.metrics = "top1 | topk(5)"
    c.loss.smoothing = 0.1
    c.optim.name = "sgd(momentum=0.875, nesterov=False)"
    c.optim.lr = 0.256
    c.optim.lr_per = 256
    c.optim.weight_decay = 1 / 32768
    c.optim.schedule = "cosine"
    c.optim.warmup = "8 epochs"
    return c
