"""A plug-in: a network, an augmentation and a loss of one's own, in forty lines.

    jaxcls train --config=configs/digits.py --plugins=examples/squeeze.py \
        --config.model.name="squeeze(width=16)" --config.augment="dim(0.3)" \
        --config.loss.name=hinge --workdir=runs/squeeze
    jaxcls evaluate --workdir=runs/squeeze --plugins=examples/squeeze.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models import Output


class Squeeze(nn.Module):
    """Two convolutions; the mean of each channel is a feature. Images to logits."""

    num_classes: int
    width: int = 32

    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(nn.Conv(self.width, (3, 3), name="stem")(images))
        x = nn.BatchNorm(not train, momentum=0.9, name="norm")(x)
        x = nn.relu(nn.Conv(2 * self.width, (3, 3), strides=2, name="squeeze")(x))
        features = x.mean((1, 2))
        return Output(nn.Dense(self.num_classes, name="head")(features), features)


def dim(most: float = 0.5):
    """Darkens each image by a factor drawn from 1 - most to 1, by the key of its row."""

    def apply(rows, images):
        factor = 1 - most * jax.vmap(jax.random.uniform)(rows.key)
        return jnp.uint8(jnp.round(images * factor[:, None, None, None]))

    return apply


def hinge(margin: float = 1.0):
    """Returns the largest of margin + another logit - that of the label, [B]."""

    def apply(logits, targets):
        of_label = (logits * targets).sum(-1, keepdims=True)
        return (logits + margin * (1 - targets) - of_label).max(-1)

    return apply


MODELS = {"squeeze": Squeeze}
AUGMENTATIONS = {"dim": dim}
LOSSES = {"hinge": hinge}
