"""Fine-tuning: the weights that others trained, on your own prepared folder.

Kornblith et al., arXiv:1805.08974, find SGD with Nesterov momentum at a small rate good
for most datasets. What images look like (size, crop, mean and deviation of pixels) comes
with the weights, and the head starts fresh where the classes are others.

Weights: a .safetensors or .pth file by torchvision's or timm's names, the hub's
("hf:timm/resnet50.a1_in1k"), or a run's folder. `model.name` must be the model they are of.
Cost: as many images as your folder has, 20 times; a ResNet-50 takes 24.5 GFLOP an image
forward and backward at 224 pixels, and a third of it where only the head trains.

    jaxcls prepare --source=my_photos --name=photos --val_fraction=0.2
    python -m jaxcls.main --config=configs/finetune.py --config.data.name=photos \\
        --config.init.weights=hf:timm/resnet50.a1_in1k

Only the head, a linear probe: --config.optim.freeze='^(?!head/)'
The head alone first, then all: --config.optim.head_first="2 epochs"
The body slower than the head: --config.optim.head_lr=10
A ViT, the lower the layer the slower: --config.optim.layer_decay=0.75

Deviations:
- None: the recipe is this project's own.
"""

from ml_collections import ConfigDict

from jaxcls.config import base


def get_config() -> ConfigDict:
    c = base()
    c.batch_size = 32
    c.length = "20 epochs"
    c.model.name = "resnet50"
    c.init.head = "auto"
    c.data.name = "photos"
    c.data.eval = "val"
    c.data.train_ops = "weights"
    c.data.eval_ops = "weights"
    c.normalize = "weights"
    c.augment = "flip"
    c.optim.name = "sgd(momentum=0.9)"
    c.optim.lr = 1e-3
    c.optim.weight_decay = 1e-4
    c.optim.warmup = "5 percent"
    c.loss.smoothing = 0.1
    return c
