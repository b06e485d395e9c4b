"""The state of a run and the pure functions that advance and score it.

Keywords hold what is constant in a run. Nothing here reads devices, files or
configs. ``experiment/programs.py`` jits these functions with the shardings of a mesh.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcls.augment import Augmentation, Mix, Normalization, Rows, row_keys
from jaxcls.data.batch import Batch
from jaxcls.learning import gradients, optimizers
from jaxcls.learning.losses import Loss, smooth
from jaxcls.learning.metrics import Metric, predicted
from jaxcls.learning.param_groups import map_named
from jaxcls.learning.schedules import Schedule
from jaxcls.learning.wrappers import averaged

Tree = Any


class Best(NamedTuple):
    """The best evaluation so far; step -1 before the first."""

    value: jax.Array
    step: jax.Array


class Plateau(NamedTuple):
    """The reduction of the rate if evaluations stop improving.

    scale: The factor of the schedule's rate.
    waited: The evaluations since the last gain or reduction.
    """

    scale: jax.Array
    waited: jax.Array


class State(NamedTuple):
    """The complete state of a run at one step; arrays only.

    step: The number of updates done and of batches consumed.
    ema: {"params", "batch_stats"}, or {} without an average.
    key: A typed key for each random stream of the step, "augment" and "dropout".
    mark: The value of the last evaluation that gained more than min_delta.
    patience: The evaluations since `mark`.
    halted: True once early stopping has ended the run.
    bad_step: The step of a non-finite loss or gradient, or -1. From then on the state stays
        as before that step.
    skips: The consecutive skipped updates since the last finite one.
    rewound: [R, 2], the first and last batch that each rewind left out; -1 is none.
    plateau: {} if the rate depends on the step alone.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    ema: Tree
    key: dict[str, jax.Array]
    best: Best
    mark: jax.Array
    patience: jax.Array
    halted: jax.Array
    bad_step: jax.Array
    skips: jax.Array
    rewound: jax.Array
    plateau: Plateau | dict[str, Any]


class Model(NamedTuple):
    """A model as pure functions.

    init: (key, images) -> variables.
    apply: (variables, images, train, key) -> (logits [B, K] float32, batch_stats). `key` is
        for dropout; it may be None unless `train`.
    """

    init: Callable[[jax.Array, jax.Array], dict[str, Tree]]
    apply: Callable[[dict[str, Tree], jax.Array, bool, jax.Array | None], tuple[Any, Tree]]


Init = Callable[[jax.Array, dict[str, jax.Array], Mapping[str, Any]], State]
Inputs = Callable[[jax.Array, jax.Array, Batch], tuple[jax.Array, jax.Array]]
TrainStep = Callable[[State, Batch, Tree], tuple[State, dict[str, jax.Array]]]


def init(
    init_key: jax.Array,
    step_keys: dict[str, jax.Array],
    given: Mapping[str, Any],
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    ema: bool,
    higher: bool,
    rewinds: int = 1,
    plateau: bool = False,
) -> State:
    """Returns the state at step 0.

    given: Arrays that replace random ones, by path, "params/head/kernel".
    ema: Whether the state holds an average of the params.
    higher: Whether a larger best metric is better.
    rewinds: The capacity of `State.rewound`.
    plateau: Whether the state holds a `Plateau`.
    """
    variables = map_named(
        given.get, model.init(init_key, jnp.zeros((1, *image_shape), jnp.float32))
    )
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    worst = jnp.full((), -jnp.inf if higher else jnp.inf, jnp.float32)
    average = {"params": params, "batch_stats": batch_stats} if ema else {}
    start = Plateau(jnp.ones((), jnp.float32), jnp.zeros((), jnp.int32))
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        # A copy, since a donated state must not hold one buffer twice.
        ema=jax.tree.map(jnp.copy, average),
        key=step_keys,
        best=Best(worst, jnp.full((), -1, jnp.int32)),
        mark=jnp.copy(worst),
        patience=jnp.zeros((), jnp.int32),
        halted=jnp.zeros((), bool),
        bad_step=jnp.full((), -1, jnp.int32),
        skips=jnp.zeros((), jnp.int32),
        rewound=jnp.full((max(rewinds, 1), 2), -1, jnp.int32),
        plateau=start if plateau else {},
    )


def inputs(
    key: jax.Array,
    step: jax.Array,
    batch: Batch,
    *,
    num_classes: int,
    smoothing: float,
    augment: Augmentation,
    normalize: Normalization,
    mix: Mix | None,
    steps: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns the model's images and targets of a batch.

    images: float32 [B, H, W, C], augmented, normalised and mixed.
    targets: [B, K] float32.
    steps: The steps of the whole run, for augmentations that grow over it.

    Each row of the global batch has a separate key, so neighbours and devices change
    nothing.
    """
    row_key, mix_key = jax.random.split(jax.random.fold_in(key, step))
    share = step / jnp.float32(steps)
    keys = row_keys(row_key, batch.image.shape[0])
    rows = Rows(keys, run=key, example=batch.index, epoch=batch.epoch, share=share)
    images = normalize(augment(rows, batch.image))
    targets = smooth(batch.label, num_classes, smoothing)
    return mix(mix_key, share, images, targets) if mix else (images, targets)


class Average(NamedTuple):
    """The settings of the moving average of params and batch_stats.

    decay: The share that the average keeps.
    every: The number of updates between two changes of the average.
    warmup: The decay of the t-th average is at most (1 + t) / (10 + t). So the average of a
        short run is not dominated by its start.
    """

    decay: float
    every: int = 1
    warmup: bool = False


def train_step(
    state: State,
    batch: Batch,
    teacher: Tree,
    *,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: Schedule,
    gradient: gradients.Gradient,
    inputs: Inputs,
    metrics: Sequence[Metric],
    steps: int,
    average: Average | None = None,
    most_skips: int = 0,
    distillation: gradients.Distillation | None = None,
    has_penalty: bool = False,
) -> tuple[State, dict[str, jax.Array]]:
    """Returns the state one update later, and its scores.

    batch: image uint8 [B, H, W, C]; label, index and epoch int32 [B].
    teacher: The variables for distillation.teach, or {}.
    metrics: The scores are the means over the batch of the loss and each metric, lr,
        grad_norm, and "finite"; "penalty" if `has_penalty`.
    steps: The steps of the whole run.
    most_skips: The most consecutive non-finite updates to skip. The next one freezes the
        state.

    It is pure and shape-stable, and does not depend on devices. Its randomness is a
    function of (state.key, state.step, row).
    """
    images, targets = inputs(state.key["augment"], state.step, batch)
    taught = distillation.teach(teacher, images) if distillation else None
    examples = gradients.Examples(images, targets, taught)
    dropout_key = jax.random.fold_in(state.key["dropout"], state.step)
    found, grads = gradient(state.params, state.batch_stats, dropout_key, examples)
    lr = schedule(state.step)
    if isinstance(state.plateau, Plateau):
        lr = lr * state.plateau.scale
    # Its `optimizers.at_rate` multiplies by the rate, scaled for each param group.
    share = (state.step + 1) / jnp.float32(steps)
    updates, opt_state = optimizer.update(
        grads, state.opt_state, state.params, lr=lr, step=state.step, share=share
    )
    params = optimizers.apply(state.params, updates)
    now = {"params": params, "batch_stats": found.batch_stats}
    ema = _averaged(state, now, opt_state, average)
    new = state._replace(step=state.step + 1, opt_state=opt_state, ema=ema, **now)
    grad_norm = optax.tree.norm(grads)
    # Norms, since element-wise tests of the whole state made XLA compile a ResNet-18 for
    # 25 s instead of 4. Averages and optimizer state follow from these three. A save tests
    # the whole state element by element.
    norms = grad_norm, optax.tree.norm(new.params), optax.tree.norm(new.batch_stats)
    finite = jnp.isfinite(jnp.stack([found.loss, *norms])).all()
    scores = {m.name: m.function(found.logits, batch.label).mean() for m in metrics}
    scores = {"loss": found.loss, **scores, "lr": lr, "grad_norm": grad_norm}
    if has_penalty:
        scores["penalty"] = found.penalty
    return _keep_finite(finite, state, new, most_skips), {**scores, "finite": finite}


def eval_step(
    variables: dict[str, Tree],
    batch: Batch,
    *,
    model: Model,
    loss: Loss,
    num_classes: int,
    normalize: Normalization,
    metrics: Sequence[Metric],
) -> dict[str, jax.Array]:
    """Returns {name: [B]}: the scores of every example.

    The host sums the examples once, in float64, so the batch size and the number of devices
    cannot change the mean. The loss has no smoothing. "predicted" int32 is the class of the
    largest logit. The lowest class wins a tie; a largest logit that is not finite gives -1.
    """
    logits = logits_step(variables, batch.image, model=model, normalize=normalize)
    targets = smooth(batch.label, num_classes, 0.0)
    scores = {m.name: m.function(logits, batch.label) for m in metrics}
    return {"loss": loss(logits, targets), **scores, "predicted": predicted(logits)}


def logits_step(
    variables: dict[str, Tree], images: jax.Array, *, model: Model, normalize: Normalization
) -> jax.Array:
    """Returns the logits [B, K] of images uint8 [B, H, W, C]."""
    return model.apply(variables, normalize(images), False, None)[0]


def record_evaluation(
    state: State,
    value: float,
    *,
    higher: bool,
    min_delta: float,
    patience: int,
    plateau_patience: int = 0,
    plateau_factor: float = 1.0,
) -> State:
    """Returns the state after an evaluation of `value` at `state.step`.

    Any gain updates `best`. A gain over `mark` of more than `min_delta` resets `patience`.
    `patience` evaluations without such a gain set `halted`, unless it is 0.
    `plateau_patience` evaluations without it multiply the rate by `plateau_factor`. A
    non-finite value is never best.
    """
    sign = 1.0 if higher else -1.0
    new = jnp.where(jnp.isfinite(value), sign * jnp.float32(value), -jnp.inf)
    better = new > sign * state.best.value
    gained = new > sign * state.mark + min_delta
    waited = jnp.where(gained, 0, state.patience + 1)
    plateau = state.plateau
    if isinstance(plateau, Plateau):
        idle = jnp.where(gained, 0, plateau.waited + 1)
        over = idle >= plateau_patience
        plateau = Plateau(
            scale=jnp.where(over, plateau.scale * plateau_factor, plateau.scale),
            waited=jnp.where(over, 0, idle),
        )
    return state._replace(
        best=Best(
            jnp.where(better, sign * new, state.best.value),
            jnp.where(better, state.step, state.best.step),
        ),
        mark=jnp.where(gained, sign * new, state.mark),
        patience=waited,
        halted=state.halted | ((patience > 0) & (waited >= patience)),
        plateau=plateau,
    )


def _averaged(state: State, now: Tree, opt_state: Tree, average: Average | None) -> Tree:
    """Returns the average after the update of `state.step`, which led to `now`."""
    inner = averaged(opt_state, now["params"])  # The average that the optimizer keeps.
    if inner is not None:
        return {**now, "params": inner}
    if not average:
        return state.ema
    count = (state.step + 1) // average.every
    rate = jnp.float32(1.0 - average.decay)  # In float64: float32 rounds 0.9999.
    if average.warmup:
        rate = jnp.maximum(rate, 9.0 / (10.0 + count))
    is_due = (state.step + 1) % average.every == 0

    def each(a: jax.Array, x: jax.Array) -> jax.Array:
        # Unchanged values keep their bits: -0.0 and denormals of frozen params.
        keep = (a == x) | ~is_due
        return jnp.where(keep, a, a + rate * (x - a))

    return jax.tree.map(each, state.ema, now)


def _keep_finite(finite: jax.Array, old: State, new: State, most_skips: int) -> State:
    """Returns `new` if finite; else `old`, one step on while skips are left.

    It needs no host sync.
    """
    going = old.bad_step < 0
    ok = going & finite
    skipped = going & ~finite & (old.skips < most_skips)
    kept = jax.tree.map(
        lambda a, b: jnp.where(ok, b, a), old._replace(key={}), new._replace(key={})
    )
    return kept._replace(
        key=old.key,
        step=jnp.where(ok | skipped, new.step, old.step),
        skips=jnp.where(ok, 0, old.skips + skipped),
        bad_step=jnp.where(going & ~ok & ~skipped, old.step, old.bad_step),
    )
