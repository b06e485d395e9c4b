"""The table of all knobs: default, unit and reason, and whether each is identity."""

import json
import re
import textwrap
from typing import NamedTuple


class Knob(NamedTuple):
    """A config key; identity: another value makes another run, so a resume refuses it."""

    default: bool | int | float | str
    about: str
    identity: bool


# The random streams; `seeds` may give each a separate seed.
STREAMS = ("init", "order", "augment", "dropout")

# A knob a paragraph, "key = default  reason"; one that is not identity has ~ in place of =.
# The default is JSON.
_TABLE = """
seed = 0  seeds init, order, crops, augmentation and dropout
seeds.init = -1  seeds the initial params alone; -1: seed
seeds.order = -1  seeds the order of the training examples; -1: seed
seeds.augment = -1  seeds crops, augmentation and mixing; -1: seed
seeds.dropout = -1  seeds dropout; -1: seed
batch_size = 128  examples of a step, over all devices and hosts
length = "10 epochs"  length of the run, in epochs, steps or examples
model.name = "cnn"  an entry of MODELS, with options: 'cnn(dropout=0.2)'
model.dtype = "auto"  dtype of the computation; params are float32. auto: bfloat16 on
    accelerators, float32 on CPU
model.batch_norm_groups = 1  groups of BatchNorm: rows m, m + k, ... of the batch share
    statistics, for each m below k; 1: the whole global batch
model.matmul_precision = ""  precision of products and convolutions: bfloat16, tensorfloat32
    or float32; '': the device's default, which is below float32 on accelerators
model.remat = ""  recompute in the backward pass, which saves memory: blocks (the inside of
    each block, about a third more work), elementwise (all inside but convolutions and
    products); '': nothing. The last bits differ, so it is part of the run
data.name = "digits"  a TFDS dataset in ArrayRecord: 'name[/config][:1.2.3]'
data.dir ~ ""  folder that holds NAME/VERSION of datasets, as --data_dir of prepare; '':
    TFDS_DATA_DIR or ~/tensorflow_datasets
data.train = "train"  split to train on; TFDS slices: 'train[:90%]'
data.eval = ""  split that drives keep-best and early stopping; '': none
data.test = ""  split scored once, at the end; '': none
data.split_seed = -1  draws anew which examples of data.train and data.eval, two slices of
    one split, are whose; -1: as the two say
data.classes = ""  classes to use, 'cat, dog' or '0-9', in every split; '': all
data.fraction = 1.0  share of the training examples of each class; 0.1 is a subset of 0.2
data.fraction_seed = 0  seeds the choice of data.fraction
data.balance = false  show every class equally often in an epoch
data.repeats = 1  times an example is repeated in a row, each with its own crop and
    augmentation
data.train_ops = "decode"  host pipeline, bytes -> uint8 pixels of one size
data.eval_ops = "decode"  host pipeline of evaluation and prediction
data.resident ~ "auto"  keep decoded images on the device: auto (up to 512 MiB), on, off
data.threads ~ 0  decoding threads of a host; 0: one a core
data.prefetch ~ 2  batches kept ready
augment = ""  device pipeline over uint8 images, keyed per example
mix = ""  mixing of examples within the batch, after augment and normalize
normalize = "unit"  uint8 -> float32, an entry of NORMALIZATIONS
loss.name = "softmax"  an entry of LOSSES, 'focal(gamma=1.0)', or of optax,
    'optax.sigmoid_focal_loss'
loss.smoothing = 0.0  label smoothing: share of the target that is spread over all classes
loss.class_weights = ""  weights of an example's label in the training loss: 'balanced', a
    number for each, '1, 2, 0.5', or some by name, 'cat: 2'; '': all 1
loss.l1 = 0.0  factor of sum |p| over the params of optim.decay_on, added to the loss
loss.l2 = 0.0  factor of sum p^2 over the params of optim.decay_on, added to the loss
distill.run ~ ""  folder of the teacher, a run whose logits are learned; '': none
distill.weight = 0.5  share of the distillation in the loss, up to 1
distill.temperature = 1.0  temperature of both softmaxes of distillation
optim.name = "sgd"  an entry of OPTIMIZERS, 'adamw(b2=0.95)', or of optax, 'optax.yogi'
optim.lr = 0.1  peak learning rate
optim.lr_per = 0  batch size to which optim.lr refers; 0: lr is absolute
optim.weight_decay = 0.0  weight decay: coupled (L2) for sgd, adam and rmsprop, else
    decoupled and times the rate
optim.decay_on = "kernel$"  params that decay, as a regular expression on 'layer/param';
    biases and norms do not
optim.decay_scales = ""  factors of the decay by regular expression: {'^stem/': 0.1}
optim.schedule = "cosine"  an entry of SCHEDULES, between warm-up and cool-down
optim.warmup = "0 steps"  linear warm-up from optim.warmup_from to the peak
optim.warmup_from = 0.0  start of the warm-up, as a share of the peak
optim.cooldown = "0 steps"  linear cool-down to 0 at the end of the run
optim.plateau_patience = 0  evaluations without a gain after which the rate is reduced; 0:
    never
optim.plateau_factor = 0.1  factor of the rate at a plateau
optim.freeze = ""  params that do not train, as a regular expression on 'layer/param', with
    the statistics of their BatchNorm; '^(?!head/)' leaves a linear probe
optim.lora = ""  low-rank parts beside dense layers, which train alone with the head:
    "rank=8, alpha=16, on='attention'"; on: an expression on layers' names; '': none
optim.layer_decay = 1.0  rate of a layer as a multiple of the next layer's; ViTs are tuned
    with 0.75
optim.head_lr = 1.0  rate of the head as a multiple of the other layers'
optim.head_first = "0 steps"  duration in which the head alone changes; all gradients are
    computed
optim.lr_scales = ""  factors of the rate by regular expression: {'bias$': 64, '^stem/':
    0.1}
optim.clip_norm = 0.0  largest global norm of the gradient; 0: no clipping
optim.clip_value = 0.0  largest absolute value in the gradient; 0: no clipping
optim.clip_adaptive = 0.0  largest norm of a unit's gradient over the norm of its weights
    (AGC); 0: no clipping
optim.accumulate = 1  microbatches of a batch; their gradients are averaged
optim.sam = 0.0  rho of sharpness-aware minimisation, two gradients a step; 0: off
optim.wrapper = ""  an entry of WRAPPERS: 'lookahead(5)', 'schedule_free'
init.weights ~ ""  initial weights: a file (.safetensors, .pth, .npz, .h5), perhaps with
    #ENTRY, 'hf:timm/resnet50.a1_in1k', or a run's folder (its best checkpoint); '': random
init.head = "keep"  head of init.weights: keep, fresh, auto (fresh if the classes differ) or
    match (the part of the head that is of these classes, by name)
init.skip = ""  layers of init.weights to leave out, as a regular expression on names here
    or there
probe.penalties = ""  a probe: factors of half the head's squared kernel, of which data.eval
    chooses one, '1e-2, 1e-4'; '': the run trains
probe.cache ~ ""  folder that keeps the features of probes for other probes; '': none
ema.decay = 0.0  decay of the moving average of params and batch_stats; 0: no average
ema.every = 1  updates between two updates of the average
ema.warmup = false  use a smaller decay at first: (1 + t) / (10 + t)
eval.every = "1 epoch"  period of the evaluations on data.eval; the last step is always
    evaluated
eval.batch_size = 0  examples of an evaluation batch; 0: batch_size
eval.metrics = "top1"  entries of METRICS: 'top1 | topk(5)'; the loss is always there
best.metric = "top1"  metric that decides the best checkpoint: a metric, loss, or
    ema_<metric>
early_stop.patience = 0  evaluations without a better best after which the run stops; 0:
    never
early_stop.min_delta = 0.0  smallest gain in best.metric that counts, for early stopping and
    the plateau
nonfinite.policy = "stop"  answer to a non-finite loss or gradient: stop; skip its batch; or
    rewind to the last checkpoint.every and leave out the batches since
nonfinite.skips = 10  batches in a row that skip leaves out before it stops
nonfinite.rewinds = 3  times that rewind goes back before it stops
checkpoint.every ~ "1 epoch"  period of the checkpoints, besides each new best and the last
    step
checkpoint.keep ~ 1  last checkpoints that are kept, besides the best one
log.every ~ "50 steps"  period of the training records, besides one at each evaluation
log.tensorboard ~ true  write TensorBoard event files too
log.wandb ~ ""  project of Weights & Biases to log to; '': none
log.profile ~ 0  steps to trace into profile/, after the first three of a start; 0: none
watchdog.first ~ 1800  several processes: seconds that the first step may take, with its
    compilation
watchdog.later ~ 600  seconds of a save, and of several processes also between steps, before
    a process ends; 0: no limit
mesh.devices ~ 0  devices of a host to use; 0: all
mesh.fsdp ~ 1  devices over which one copy of params, average and optimizer state is
    sharded; the batch is spread over all devices. 1: each device has the whole copy
compile.cache ~ ""  private folder that keeps compiled programs for later starts; all hosts
    must see it; '': none
compile.loop ~ "auto"  several steps in one dispatch, as a loop in one program: on, off, or
    auto (on for accelerators of one process with training's images on the device; on a CPU
    the convolutions of a loop are many times slower). The last bits may differ between on
    and off; the number of steps in a dispatch changes no bits
compile.convolution ~ "auto"  library of convolutions on a CPU, which decides bits: eigen,
    ynnpack, or auto (eigen on x86, where it is faster; an old run keeps what it has)
plugins ~ ""  your files or modules with entries for our tables: 'net.py, mypackage.nets'; a
    file is looked up beside the config, then from here
"""


def _read(table: str) -> dict[str, Knob]:
    found = {}
    for row in re.sub("\n +", " ", table.strip()).splitlines():
        head, _, about = row.partition("  ")
        key, sign, default = head.split(maxsplit=2)
        found[key] = Knob(json.loads(default), about, identity=sign == "=")
    return found


KNOBS = _read(_TABLE)
# Keys of earlier runs, which a folder holds as "", with what took their place.
RETIRED = {
    "init.whiten": "a model's from_images, as in examples/airbench.py",
    "optim.freeze_after": "a wrapper, such as renormalize of examples/airbench.py",
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
