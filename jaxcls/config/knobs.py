"""The table of all knobs: default, unit and reason, and whether each is identity."""

import json
import textwrap
from typing import NamedTuple


class Knob(NamedTuple):
    """A config key; identity: another value makes another run, so a resume refuses it."""

    default: bool | int | float | str
    about: str
    identity: bool = True


# The random streams; `seeds` may give each a separate seed.
STREAMS = ("init", "order", "augment", "dropout")

KNOBS: dict[str, Knob] = {
    "seed": Knob(0, "seeds init, order, crops, augmentation and dropout"),
    "seeds.init": Knob(-1, "seeds the initial params alone; -1: seed"),
    "seeds.order": Knob(-1, "seeds the order of the training examples; -1: seed"),
    "seeds.augment": Knob(-1, "seeds crops, augmentation and mixing; -1: seed"),
    "seeds.dropout": Knob(-1, "seeds dropout; -1: seed"),
    "batch_size": Knob(128, "examples of a step, over all devices and hosts"),
    "length": Knob("10 epochs", "length of the run, in epochs, steps or examples"),
    "model.name": Knob("cnn", "an entry of MODELS, with options: 'cnn(dropout=0.2)'"),
    "model.dtype": Knob(
        "auto",
        "dtype of the computation; params are float32. auto: bfloat16 on "
        "accelerators, float32 on CPU (the device decides it, so it belongs to the "
        "topology of law 1)",
    ),
    "model.batch_norm_groups": Knob(
        1,
        "groups of BatchNorm: rows m, m + k, ... of the batch share statistics, for "
        "each m below k; 1: the whole global batch",
    ),
    "model.matmul_precision": Knob(
        "",
        "precision of products and convolutions: bfloat16, tensorfloat32 or float32; "
        "'': the device's default, which is below float32 on accelerators",
    ),
    "model.remat": Knob(
        "",
        "recompute in the backward pass, which saves memory: blocks (the inside of "
        "each block, about a third more work); '': nothing. The last bits differ, so "
        "it is part of the run",
    ),
    "data.name": Knob("digits", "a TFDS dataset in ArrayRecord: 'name[/config][:1.2.3]'"),
    "data.dir": Knob(
        "", "folder of the dataset; '': TFDS_DATA_DIR or ~/tensorflow_datasets", False
    ),
    "data.train": Knob("train", "split to train on; TFDS slices: 'train[:90%]'"),
    "data.eval": Knob("", "split that drives keep-best and early stopping; '': none"),
    "data.test": Knob("", "split scored once, at the end; '': none"),
    "data.classes": Knob(
        "", "classes to use, 'cat, dog' or '0-9', in every split; '': all"
    ),
    "data.fraction": Knob(
        1.0, "share of the training examples of each class; 0.1 is a subset of 0.2"
    ),
    "data.fraction_seed": Knob(0, "seeds the choice of data.fraction"),
    "data.balance": Knob(False, "show every class equally often in an epoch"),
    "data.repeats": Knob(
        1, "times an example is repeated in a row, each with its own crop and augmentation"
    ),
    "data.train_ops": Knob("decode", "host pipeline, bytes -> uint8 pixels of one size"),
    "data.eval_ops": Knob("decode", "host pipeline of evaluation and prediction"),
    "data.resident": Knob(
        "auto", "keep decoded images on the device: auto (up to 512 MiB), on, off", False
    ),
    "data.threads": Knob(0, "decoding threads of a host; 0: one a core", False),
    "data.prefetch": Knob(2, "batches kept ready", False),
    "augment": Knob("", "device pipeline over uint8 images, keyed per example"),
    "mix": Knob("", "mixing of examples within the batch, after augment and normalize"),
    "normalize": Knob("unit", "uint8 -> float32, an entry of NORMALIZATIONS"),
    "loss.name": Knob("softmax", "an entry of LOSSES"),
    "loss.smoothing": Knob(
        0.0, "label smoothing: share of the target that is spread over all classes"
    ),
    "loss.class_weights": Knob(
        "",
        "class weights of the training loss: 'balanced', a number for each, '1, 2, "
        "0.5', or some by name, 'cat: 2'; '': all 1",
    ),
    "loss.l1": Knob(
        0.0, "factor of sum |p| over the params of optim.decay_on, added to the loss"
    ),
    "loss.l2": Knob(
        0.0, "factor of sum p^2 over the params of optim.decay_on, added to the loss"
    ),
    "distill.run": Knob(
        "", "folder of the teacher, a run whose logits are learned; '': none", False
    ),
    "distill.weight": Knob(0.5, "share of the distillation in the loss, up to 1"),
    "distill.temperature": Knob(1.0, "temperature of both softmaxes of distillation"),
    "optim.name": Knob("sgd", "an entry of OPTIMIZERS: 'adamw(b2=0.95)'"),
    "optim.lr": Knob(0.1, "peak learning rate"),
    "optim.lr_per": Knob(0, "batch size to which optim.lr refers; 0: lr is absolute"),
    "optim.weight_decay": Knob(
        0.0,
        "weight decay: coupled (L2) for sgd, adam and rmsprop, else decoupled and "
        "times the rate",
    ),
    "optim.decay_on": Knob(
        "kernel$",
        "params that decay, as a regular expression on 'layer/param'; biases and "
        "norms do not",
    ),
    "optim.decay_scales": Knob(
        "", "factors of the decay by regular expression: {'^stem/': 0.1}"
    ),
    "optim.schedule": Knob(
        "cosine", "an entry of SCHEDULES, between warm-up and cool-down"
    ),
    "optim.warmup": Knob("0 steps", "linear warm-up from optim.warmup_from to the peak"),
    "optim.warmup_from": Knob(0.0, "start of the warm-up, as a share of the peak"),
    "optim.cooldown": Knob("0 steps", "linear cool-down to 0 at the end of the run"),
    "optim.plateau_patience": Knob(
        0, "evaluations without a gain after which the rate is reduced; 0: never"
    ),
    "optim.plateau_factor": Knob(0.1, "factor of the rate at a plateau"),
    "optim.freeze": Knob(
        "",
        "params that do not train, as a regular expression on 'layer/param', with the"
        " statistics of their BatchNorm; '^(?!head/)' leaves a linear probe",
    ),
    "optim.layer_decay": Knob(
        1.0, "rate of a layer as a multiple of the next layer's; ViTs are tuned with 0.75"
    ),
    "optim.head_lr": Knob(1.0, "rate of the head as a multiple of the other layers'"),
    "optim.head_first": Knob(
        "0 steps", "duration in which the head alone changes; all gradients are computed"
    ),
    "optim.lr_scales": Knob(
        "", "factors of the rate by regular expression: {'bias$': 64, '^stem/': 0.1}"
    ),
    "optim.freeze_after": Knob(
        "", "time at which params freeze, by regular expression: {'^whiten/': '3 epochs'}"
    ),
    "optim.clip_norm": Knob(0.0, "largest global norm of the gradient; 0: no clipping"),
    "optim.clip_value": Knob(0.0, "largest absolute value in the gradient; 0: no clipping"),
    "optim.clip_adaptive": Knob(
        0.0,
        "largest norm of a unit's gradient over the norm of its weights (AGC); 0: no "
        "clipping",
    ),
    "optim.accumulate": Knob(1, "microbatches of a batch; their gradients are averaged"),
    "optim.sam": Knob(
        0.0, "rho of sharpness-aware minimisation, two gradients a step; 0: off"
    ),
    "optim.wrapper": Knob("", "an entry of WRAPPERS: 'lookahead(5)', 'schedule_free'"),
    "init.weights": Knob(
        "",
        "initial weights: a file (.safetensors, .pth) with torchvision's or timm's "
        "names, 'hf:timm/resnet50.a1_in1k', or a run's folder (its best checkpoint); "
        "'': random",
        False,
    ),
    "init.head": Knob(
        "keep", "head of init.weights: keep, fresh, or auto (fresh if the classes differ)"
    ),
    "init.skip": Knob(
        "",
        "layers of init.weights to leave out, as a regular expression on names here "
        "or there",
    ),
    "init.whiten": Knob(
        "",
        "layer whose kernel starts by whitening patches of the training images, "
        "unless init.weights has it",
    ),
    "ema.decay": Knob(
        0.0, "decay of the moving average of params and batch_stats; 0: no average"
    ),
    "ema.every": Knob(1, "updates between two updates of the average"),
    "ema.warmup": Knob(False, "use a smaller decay at first: (1 + t) / (10 + t)"),
    "eval.every": Knob(
        "1 epoch",
        "period of the evaluations on data.eval; the last step is always evaluated",
    ),
    "eval.batch_size": Knob(0, "examples of an evaluation batch; 0: batch_size"),
    "eval.metrics": Knob(
        "top1", "entries of METRICS: 'top1 | topk(5)'; the loss is always there"
    ),
    "best.metric": Knob(
        "top1", "metric that decides the best checkpoint: a metric, loss, or ema_<metric>"
    ),
    "early_stop.patience": Knob(
        0, "evaluations without a better best after which the run stops; 0: never"
    ),
    "early_stop.min_delta": Knob(
        0.0, "smallest gain in best.metric that counts, for early stopping and the plateau"
    ),
    "nonfinite.policy": Knob(
        "stop",
        "answer to a non-finite loss or gradient: stop; skip its batch; or rewind to "
        "the last checkpoint.every and leave out the batches since",
    ),
    "nonfinite.skips": Knob(10, "batches in a row that skip leaves out before it stops"),
    "nonfinite.rewinds": Knob(3, "times that rewind goes back before it stops"),
    "checkpoint.every": Knob(
        "1 epoch",
        "period of the checkpoints, besides each new best and the last step",
        False,
    ),
    "checkpoint.keep": Knob(
        1, "last checkpoints that are kept, besides the best one", False
    ),
    "log.every": Knob("50 steps", "period of the training records", False),
    "log.tensorboard": Knob(True, "write TensorBoard event files too", False),
    "log.wandb": Knob("", "project of Weights & Biases to log to; '': none", False),
    "log.profile": Knob(
        0, "steps to trace into profile/, after the first three of a start; 0: none", False
    ),
    "watchdog.first": Knob(
        1800,
        "several processes: seconds that the first step may take, with its compilation",
        False,
    ),
    "watchdog.later": Knob(
        600,
        "several processes: seconds between steps before a process ends; 0: no limit",
        False,
    ),
    "mesh.devices": Knob(0, "devices of a host to use; 0: all", False),
    "mesh.fsdp": Knob(
        1,
        "devices over which one copy of params, average and optimizer state is "
        "sharded; the batch is spread over all devices. 1: each device has the whole "
        "copy",
        False,
    ),
    "compile.cache": Knob(
        "",
        "private folder that keeps compiled programs for later starts; all hosts must"
        " see it; '': none",
        False,
    ),
    "compile.loop": Knob(
        "auto",
        "several steps in one dispatch, as a loop in one program: on, off, or auto "
        "(on for accelerators of one process with training's images on the device; on"
        " a CPU the convolutions of a loop are many times slower). The last bits may "
        "differ between on and off; the number of steps in a dispatch changes no bits",
        False,
    ),
}


def describe() -> str:
    """Returns the table of knobs for ``--help``: key, default, identity, reason."""
    width = max(map(len, KNOBS)) + 6
    rows = []
    for key, knob in KNOBS.items():
        head = f"  {'*' if knob.identity else ' '} {key}"
        about = textwrap.wrap(f"{knob.about} [{json.dumps(knob.default)}]", 98 - width)
        rows.append(f"{head:<{width}}{about[0]}")
        rows += [" " * width + text for text in about[1:]]
    return "\n".join(rows)
