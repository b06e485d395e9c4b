"""AlexNet on CIFAR-10, as tutorials train it: a rate that falls with every epoch.

Krizhevsky, arXiv:1404.5997, on images enlarged to 64 pixels, each standardised by its own
mean and deviation; SGD at 0.01 * exp(-epoch / 10), and an end where five evaluations
brought nothing. LeCun's initialisation: from PyTorch's, which makes the signal smaller
layer by layer, plain SGD stays at chance for more than those five.

Data: cifar10 prepared by TFDS as ArrayRecord in --config.data.dir.
Cost: 383 steps of 128 an epoch; 57 million parameters, 0.56 GFLOP an image forward and
backward.
Expected: no published number is of this very recipe. On a fifth of CIFAR-10 as JPEG files
(--config.data.fraction=0.2, one seed) it stopped early after 33 epochs: 0.527 of data.eval
after epoch 28, 0.514 of 5,000 test images; all images were not tried to the end.

    python -m jaxcls.main --config=configs/tutorial_alexnet.py --config.data.dir=DIR

Deviations:
- None from a published number: none is of this recipe. The initialisation is LeCun's,
  as above.
"""

from ml_collections import ConfigDict

from jaxcls.config import base


def get_config() -> ConfigDict:
    c = base()
    c.batch_size = 128
    c.length = "50 epochs"
    c.model.name = "alexnet(weight_init='lecun')"
    c.data.name = "cifar10"
    c.data.train = "train[:98%]"
    c.data.eval = "train[98%:]"
    c.data.test = "test"
    c.data.train_ops = "decode | resize(64)"
    c.data.eval_ops = "decode | resize(64)"
    c.normalize = "per_image"
    c.optim.name = "sgd(momentum=0.0)"
    c.optim.lr = 0.01
    c.optim.schedule = "exponential('10 epochs', 0.36787944117144233)"  # exp(-1).
    c.early_stop.patience = 5
    return c
