"""A folder of photographs, from nothing: ResNet-18 on 128 pixels.

He et al., arXiv:1512.03385; crops and flips as in the ImageNet recipes.

Data: `jaxcls prepare --source=FOLDER --name=photos --val_fraction=0.2`, where
FOLDER holds a folder of images for each class. The classes and their number come with
the data. Split val selects the best checkpoint; give a test split for an honest score.
Cost: 30 epochs; 11.2 million parameters, 3.6 GFLOP an image forward and backward.
Expected: from nothing, some hundred photographs a class are needed; not measured here.

    python -m jaxcls.main --config=configs/photos.py

Deviations:
- None: the recipe is this project's own.
"""

from ml_collections import ConfigDict

from jaxcls.config import base


def get_config() -> ConfigDict:
    c = base()
    c.batch_size = 64
    c.length = "30 epochs"
    c.model.name = "resnet18"
    c.data.name = "photos"
    c.data.train = "train"
    c.data.eval = "val"
    c.data.train_ops = "decode | random_resized_crop(128, area=(0.25, 1.0))"
    c.data.eval_ops = "decode | resize_short(146) | center_crop(128)"
    c.augment = "flip"
    c.normalize = "imagenet"
    c.loss.smoothing = 0.1
    c.optim.name = "sgd(momentum=0.9, nesterov=True)"
    c.optim.lr = 0.1
    c.optim.lr_per = 128
    c.optim.weight_decay = 5e-4
    c.optim.warmup = "10 percent"
    return c
