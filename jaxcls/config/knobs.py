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
    "seed": Knob(0, "decides init, order, crops, augmentation and dropout"),
    "seeds.init": Knob(-1, "of the initial params alone; -1: seed"),
    "seeds.order": Knob(-1, "of the order of the training examples; -1: seed"),
    "seeds.augment": Knob(-1, "of crops, augmentation and mixing; -1: seed"),
    "seeds.dropout": Knob(-1, "of what drops out; -1: seed"),
    "batch_size": Knob(128, "examples a step, over all devices and hosts"),
    "length": Knob("10 epochs", "of the run: epochs, steps or examples"),
    "model.name": Knob("cnn", "an entry of MODELS, with options: 'cnn(dropout=0.2)'"),
    "model.dtype": Knob(
        "auto",
        "of the computation; params are float32. auto: bfloat16 on accelerators,"
        " float32 on CPU (which one is the topology's, so part of law 1's inputs)",
    ),
    "model.batch_norm_groups": Knob(
        1,
        "BatchNorm's statistics are those of rows m, m + k, ... for each m below k; 1: of"
        " the whole global batch",
    ),
    "model.matmul_precision": Knob(
        "",
        "of products and convolutions: bfloat16, tensorfloat32 or float32; '': the"
        " device's default, which is below float32 on accelerators",
    ),
    "model.remat": Knob(
        "",
        "what a gradient computes anew in place of keeping it, for memory: blocks, of what"
        " is within each block of the model (about a third more work); '': nothing. The"
        " last bits differ, so it is part of the run",
    ),
    "data.name": Knob("digits", "a TFDS dataset in ArrayRecord: 'name[/config][:1.2.3]'"),
    "data.dir": Knob("", "where it is; '': TFDS_DATA_DIR or ~/tensorflow_datasets", False),
    "data.train": Knob("train", "split to train on; TFDS slices: 'train[:90%]'"),
    "data.eval": Knob("", "split that drives keep-best and early stopping; '': none"),
    "data.test": Knob("", "split scored once, at the end; '': none"),
    "data.classes": Knob(
        "", "classes to use, 'cat, dog' or '0-9', in every split; '': all"
    ),
    "data.fraction": Knob(
        1.0, "share of each class's training examples; 0.1 is within 0.2"
    ),
    "data.fraction_seed": Knob(0, "which examples data.fraction takes"),
    "data.balance": Knob(False, "every class equally often in an epoch"),
    "data.repeats": Knob(
        1, "times an example comes in a row, each with its own crop and augmentation"
    ),
    "data.train_ops": Knob("decode", "host pipeline, bytes -> uint8 pixels of one size"),
    "data.eval_ops": Knob("decode", "the same for evaluation and prediction"),
    "data.resident": Knob(
        "auto", "keep decoded images on the device: auto (to 512 MiB), on, off", False
    ),
    "data.threads": Knob(0, "decoding threads a host; 0: one a core", False),
    "data.prefetch": Knob(2, "batches kept ready", False),
    "augment": Knob("", "device pipeline over uint8 images, keyed per example"),
    "mix": Knob("", "mixing of examples within the batch, after augment and normalize"),
    "normalize": Knob("unit", "uint8 -> float32, an entry of NORMALIZATIONS"),
    "loss.name": Knob("softmax", "an entry of LOSSES"),
    "loss.smoothing": Knob(0.0, "label smoothing, share of the target spread over all"),
    "loss.class_weights": Knob(
        "",
        "of each class in the training loss: 'balanced', a number for each, '1, 2, 0.5',"
        " or some by name, 'cat: 2'; '': all 1",
    ),
    "loss.l1": Knob(0.0, "sum |p| over the params of optim.decay_on, added to the loss"),
    "loss.l2": Knob(0.0, "sum p^2 over the params of optim.decay_on, added to the loss"),
    "distill.run": Knob("", "folder of a run whose logits are learned; '': none", False),
    "distill.weight": Knob(0.5, "share of the loss that is distillation, to 1"),
    "distill.temperature": Knob(1.0, "of both softmaxes of distillation"),
    "optim.name": Knob("sgd", "an entry of OPTIMIZERS: 'adamw(b2=0.95)'"),
    "optim.lr": Knob(0.1, "peak learning rate"),
    "optim.lr_per": Knob(0, "batch size that optim.lr is meant for; 0: lr is absolute"),
    "optim.weight_decay": Knob(
        0.0, "coupled (L2) for sgd, adam and rmsprop, else decoupled and times the rate"
    ),
    "optim.decay_on": Knob(
        "kernel$",
        "regular expression on 'layer/param': what decays; biases and norms do not",
    ),
    "optim.decay_scales": Knob(
        "", "factors of the decay by regular expression: {'^stem/': 0.1}"
    ),
    "optim.schedule": Knob(
        "cosine", "an entry of SCHEDULES, between warm-up and cool-down"
    ),
    "optim.warmup": Knob("0 steps", "linear from optim.warmup_from to the peak"),
    "optim.warmup_from": Knob(0.0, "where warm-up begins, as a share of the peak"),
    "optim.cooldown": Knob("0 steps", "linear to 0 at the end of the run"),
    "optim.plateau_patience": Knob(
        0, "evaluations without a gain after which the rate is reduced; 0: never"
    ),
    "optim.plateau_factor": Knob(0.1, "what the rate is then multiplied by"),
    "optim.freeze": Knob(
        "",
        "regular expression on 'layer/param': what does not train, with the statistics of"
        " BatchNorm; '^(?!head/)' leaves a linear probe",
    ),
    "optim.layer_decay": Knob(
        1.0, "rate of a layer as a multiple of the next one's; ViTs are tuned with 0.75"
    ),
    "optim.head_lr": Knob(1.0, "rate of the head as a multiple of the others'"),
    "optim.head_first": Knob(
        "0 steps", "how long the head alone changes; all gradients are taken"
    ),
    "optim.lr_scales": Knob(
        "", "factors of the rate by regular expression: {'bias$': 64, '^stem/': 0.1}"
    ),
    "optim.freeze_after": Knob(
        "", "when params freeze, by regular expression: {'^whiten/': '3 epochs'}"
    ),
    "optim.clip_norm": Knob(0.0, "largest global gradient norm; 0: none"),
    "optim.clip_value": Knob(0.0, "largest size of a gradient's number; 0: none"),
    "optim.clip_adaptive": Knob(
        0.0, "largest norm of a unit's gradient over its weights' (AGC); 0: none"
    ),
    "optim.accumulate": Knob(
        1, "microbatches of a batch, whose gradients are taken one after the other"
    ),
    "optim.sam": Knob(0.0, "rho of sharpness-aware minimisation, two gradients; 0: off"),
    "optim.wrapper": Knob("", "an entry of WRAPPERS: 'lookahead(5)', 'schedule_free'"),
    "init.weights": Knob(
        "",
        "start from these: a file (.safetensors, .pth) with torchvision's or timm's names,"
        " 'hf:timm/resnet50.a1_in1k', or a run's folder (its best); '': random",
        False,
    ),
    "init.head": Knob(
        "keep", "the head of init.weights: keep, fresh, or auto (fresh if classes differ)"
    ),
    "init.skip": Knob(
        "", "regular expression on names here or there: what of init.weights is left out"
    ),
    "init.whiten": Knob(
        "",
        "layer whose kernel starts by whitening the training images' patches, unless"
        " init.weights has it",
    ),
    "ema.decay": Knob(0.0, "of the moving average of params and batch_stats; 0: none"),
    "ema.every": Knob(1, "updates between two averages"),
    "ema.warmup": Knob(False, "a smaller decay at first: (1 + t) / (10 + t)"),
    "eval.every": Knob("1 epoch", "evaluation on data.eval; the last step always is"),
    "eval.batch_size": Knob(0, "examples a batch; 0: batch_size"),
    "eval.metrics": Knob("top1", "entries of METRICS: 'top1 | topk(5)'; loss always is"),
    "best.metric": Knob("top1", "what 'best' means: a metric, loss, or ema_<metric>"),
    "early_stop.patience": Knob(0, "evaluations without a better best; 0: never stop"),
    "early_stop.min_delta": Knob(
        0.0, "least gain in best.metric that counts for its and the plateau's patience"
    ),
    "nonfinite.policy": Knob(
        "stop",
        "at a loss or gradient that is not finite: stop; skip its batch; or rewind to the"
        " last checkpoint.every and leave out the batches since",
    ),
    "nonfinite.skips": Knob(10, "batches in a row that skip leaves out before it stops"),
    "nonfinite.rewinds": Knob(3, "times that rewind goes back before it stops"),
    "checkpoint.every": Knob("1 epoch", "besides each new best and the last step", False),
    "checkpoint.keep": Knob(1, "last checkpoints kept, besides the best one", False),
    "log.every": Knob("50 steps", "training records", False),
    "log.tensorboard": Knob(True, "write event files too", False),
    "log.wandb": Knob("", "project of Weights & Biases to tell it too; '': none", False),
    "log.profile": Knob(
        0, "steps to trace into profile/, after the first three of a start; 0: none", False
    ),
    "watchdog.first": Knob(
        1800, "seconds for the first step, with its compilation; several processes", False
    ),
    "watchdog.later": Knob(
        600, "seconds from step to step before a process of several ends; 0: never", False
    ),
    "mesh.devices": Knob(0, "devices a host to use; 0: all", False),
    "mesh.fsdp": Knob(
        1,
        "devices that hold one copy of params, average and optimizer state together, each"
        " a part; the batch is spread over all. 1: each has all of it",
        False,
    ),
    "compile.cache": Knob(
        "",
        "private folder that keeps compiled programs for later starts, one that all hosts"
        " see; '': none",
        False,
    ),
    "compile.loop": Knob(
        "auto",
        "the step within a loop, so that the host starts several at once: on, off, or auto"
        " (on for accelerators of one process with training's images on the device; on a"
        " CPU a loop's convolutions are many times slower). The last bits may differ"
        " between on and off, and do not with how many are started",
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
