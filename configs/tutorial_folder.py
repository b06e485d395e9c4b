"""Your own folder of images: three convolutions on 64 pixels with Adam.

The net that tutorials train on cats and dogs: 32, 64 and 128 filters of 3x3, each with a
2x2 maximum, a dense layer with dropout. For a stronger start see configs/photos.py, and
configs/finetune.py for weights that others trained.

Data: `jaxcls prepare --source=FOLDER --name=photos --val_fraction=0.2`, where
FOLDER holds a folder of images for each class.
Cost: 15 epochs; 0.25 GFLOP an image forward and backward.
Expected: no published number is of this very recipe. 1,593 cats and dogs of CIFAR-10 gave
0.51, 0.64, 0.69 and 0.70 on 407 others after epochs 1, 3, 6 and 10, and 0.7125 at best,
after 14 (95 % interval 0.667 to 0.754); one seed, two minutes and a half on two
cores.

    python -m jaxcls.main --config=configs/tutorial_folder.py

Deviations:
- None: the recipe is this project's own.
"""

from ml_collections import ConfigDict

from jaxcls.config import base


def get_config() -> ConfigDict:
    c = base()
    c.batch_size = 32
    c.length = "15 epochs"
    c.model.name = "cnn(widths=(32, 64, 128), dense=128, dropout=0.5)"
    c.data.name = "photos"
    c.data.eval = "val"
    c.data.train_ops = "decode | resize(64)"
    c.data.eval_ops = "decode | resize(64)"
    c.augment = "flip"
    c.optim.name = "adam"
    c.optim.lr = 1e-3
    c.optim.schedule = "constant"
    return c
