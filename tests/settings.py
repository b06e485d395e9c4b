"""The settings of a run of a second or two on digits, from which tests depart."""

from jaxcls.config import loading

DIGITS = {
    "batch_size": 64,
    "model.name": "cnn(widths=(4, 8), dense=16)",
    "data.train": "train[:90%]",
    "data.eval": "train[90%:]",
    "data.test": "test",
    "data.train_ops": "decode(1)",
    "data.eval_ops": "decode(1)",
    "optim.name": "adamw",
    "optim.lr": 0.01,
    "log.tensorboard": False,
    "mesh.devices": 1,
}

# For a config of the fixture `tiny`: what is compiled in half of its time.
BARE = {
    "model.name": "cnn(widths=(4,), dense=8)",
    "augment": "",
    "mix": "",
    "ema.decay": 0.0,
}


def digits(data_dir, **overrides):
    """The config of such a run; data_dir: where digits is prepared."""
    return loading.from_flat({**DIGITS, "data.dir": str(data_dir), **overrides})
