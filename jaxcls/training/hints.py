"""Advice for a run that waits for its data.

It is separate from meter.py, so that readers of records import no data and no model.
"""

import math

from jaxcls.data import batches
from jaxcls.experiment import Experiment


def input_bound(exp: Experiment, share: float) -> str:
    """Returns one line of advice for a run that waits for data for `share` of training.

    The line is "" if the images are on the device: then nothing reads or decodes.
    """
    data, config = exp.data, exp.config.data
    if data.is_train_resident:
        return ""
    remedies = []
    if not data.random_op("train_ops"):
        remedies.append("--config.data.resident=on")
    cores = batches.cores()
    # More threads than cores help slow disks only, not decoding.
    threads = cores if 0 < config.threads < cores else 2 * max(cores, config.threads)
    remedies.append(f"--config.data.threads={threads}")
    short = min(data.train_shape[:2])
    sides = data.selection.facts.image_shape[:2]
    if any(side is None or side > 1.5 * short for side in sides):
        remedies.append(f"jaxcls prepare --shrink={math.ceil(short * 8 / 7)}")
    listed = " or ".join(remedies)
    return f"input-bound: {share:.0%} of training waits for data; try {listed}"
