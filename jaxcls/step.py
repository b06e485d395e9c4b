"""The state of a run and the pure functions that advance and score it.

Closures hold what never changes, arguments what does; devices, files and configs are
unknown here. ``experiment.py`` jits these with the shardings of a mesh.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcls.augment import Augmentation, Mix, Normalization, row_keys
from jaxcls.losses import Loss, smooth
from jaxcls.metrics import Metric
from jaxcls.optimizers import Schedule, path_name
from jaxcls.parts import Parts, hold, update

Batch = Mapping[str, jax.Array]
Tree = Any


class Best(NamedTuple):
    """The best evaluation so far; step -1 before the first."""

    value: jax.Array
    step: jax.Array


class State(NamedTuple):
    """Everything that a run is at one step; arrays only.

    step: updates done, which is also the number of batches consumed.
    ema: {"params", "batch_stats"}, or {} where ema.decay is 0.
    key: a typed key for each random stream of the step, "augment" and "dropout".
    patience: evaluations since one was better by min_delta than `mark`, the value that
    the last such one had.
    halted: the run has ended (early stopping). bad_step: the step whose loss or gradient
    was not finite, or -1; from then on the state stays as it was before that step.
    skips: updates left out one after the other, since the last finite one.
    rewound: [R, 2], first and last of the batches that each rewind left out; -1: none.
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


class Model(NamedTuple):
    """A model as functions.

    init: (key, images) -> variables; apply: (variables, images, train, key) ->
    (logits [B, K] float32, batch_stats). `key` is for dropout and may be None if not
    `train`.
    """

    init: Callable[[jax.Array, jax.Array], dict[str, Tree]]
    apply: Callable[[dict[str, Tree], jax.Array, bool, jax.Array | None], tuple[Any, Tree]]


Init = Callable[..., State]
Inputs = Callable[[jax.Array, jax.Array, Batch], tuple[jax.Array, jax.Array]]
TrainStep = Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]
EvalStep = Callable[[dict[str, Tree], Batch], dict[str, jax.Array]]


def make_init(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, int, int],
    ema: bool,
    higher: bool,
    rewinds: int = 1,
) -> Init:
    """Returns init(init_key, step_keys, given) -> the state at step 0.

    given: arrays to start with in place of random ones, by path, "params/head/kernel".
    higher: whether a larger best metric is better. rewinds: how many there is room for.
    """

    def init(
        init_key: jax.Array,
        step_keys: dict[str, jax.Array],
        given: Mapping[str, Any] | None = None,
    ) -> State:
        start = given or {}
        variables = jax.tree_util.tree_map_with_path(
            lambda path, array: start.get(path_name(path), array),
            model.init(init_key, jnp.zeros((1, *image_shape), jnp.float32)),
        )
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        worst = jnp.full((), -jnp.inf if higher else jnp.inf, jnp.float32)
        average = {"params": params, "batch_stats": batch_stats} if ema else {}
        return State(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(params),
            # A copy: a donated state must not hold one buffer twice.
            ema=jax.tree.map(jnp.copy, average),
            key=step_keys,
            best=Best(worst, jnp.full((), -1, jnp.int32)),
            mark=jnp.copy(worst),
            patience=jnp.zeros((), jnp.int32),
            halted=jnp.zeros((), bool),
            bad_step=jnp.full((), -1, jnp.int32),
            skips=jnp.zeros((), jnp.int32),
            rewound=jnp.full((max(rewinds, 1), 2), -1, jnp.int32),
        )

    return init


def make_inputs(
    *,
    num_classes: int,
    smoothing: float,
    augment: Augmentation,
    normalize: Normalization,
    mix: Mix | None,
) -> Inputs:
    """Returns inputs(augment_key, step, batch) -> (images, targets) for the model.

    images float32 [B, H, W, C], augmented, normalised and mixed; targets [B, K] float32.
    Row r of the global batch has its own key, so neighbours and devices change nothing.
    """

    def inputs(
        key: jax.Array, step: jax.Array, batch: Batch
    ) -> tuple[jax.Array, jax.Array]:
        row_key, mix_key = jax.random.split(jax.random.fold_in(key, step))
        images = augment(row_keys(row_key, batch["image"].shape[0]), batch["image"])
        images = normalize(images)
        targets = smooth(batch["label"], num_classes, smoothing)
        return mix(mix_key, images, targets) if mix else (images, targets)

    return inputs


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    loss: Loss,
    inputs: Inputs,
    *,
    metrics: Sequence[Metric],
    ema_decay: float,
    most_skips: int = 0,
    parts: Parts | None = None,
) -> TrainStep:
    """Returns train_step(state, batch) -> (state, metrics): one update.

    batch: image uint8 [B, H, W, C], label int32 [B]. metrics: means over the batch of
    loss and each metric, lr, grad_norm; whether all of it was finite. Pure, shape-stable,
    unaware of devices; randomness is a function of (state.key, state.step, row).
    most_skips: updates in a row that may be left out because they were not finite, before
    the state stays as it is. parts: how each parameter trains; None: all alike.
    """

    def train_step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        images, targets = inputs(state.key["augment"], state.step, batch)
        dropout_key = jax.random.fold_in(state.key["dropout"], state.step)

        def objective(params: Tree) -> tuple[jax.Array, tuple[jax.Array, Tree]]:
            params = hold(params, parts) if parts else params
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, batch_stats = model.apply(variables, images, True, dropout_key)
            return loss(logits, targets).mean(), (logits, batch_stats)

        gradient = jax.value_and_grad(objective, has_aux=True)
        (value, (logits, batch_stats)), grads = gradient(state.params)
        lr = schedule(state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        if parts:
            params = update(state.params, updates, lr, state.step, parts)
        else:
            params = jax.tree.map(lambda p, u: p + lr * u, state.params, updates)
        new = state._replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=_average(state.ema, params, batch_stats, ema_decay),
        )
        grad_norm = optax.tree.norm(grads)
        # Norms, not element-wise tests of the whole state: those made XLA compile a
        # ResNet-18 for 25 s instead of 4. Averages and optimizer state follow from these
        # three, and all of it is tested element by element before a save.
        norms = grad_norm, optax.tree.norm(params), optax.tree.norm(batch_stats)
        finite = jnp.isfinite(jnp.stack([value, *norms])).all()
        scores = {m.name: m.function(logits, batch["label"]).mean() for m in metrics}
        scores = {"loss": value, **scores, "lr": lr, "grad_norm": grad_norm}
        kept = _keep_finite(finite, state, new, most_skips)
        return kept, {**scores, "finite": finite}

    return train_step


def make_eval_step(
    model: Model,
    loss: Loss,
    *,
    num_classes: int,
    normalize: Normalization,
    metrics: Sequence[Metric],
) -> EvalStep:
    """Returns eval_step(variables, batch) -> {name: [B]}: every example's own scores.

    Not sums: examples are summed once, on the host in float64, so the batch size and
    the number of devices cannot change the mean. The loss is without smoothing.
    """

    def eval_step(variables: dict[str, Tree], batch: Batch) -> dict[str, jax.Array]:
        logits, _ = model.apply(variables, normalize(batch["image"]), False, None)
        targets = smooth(batch["label"], num_classes, 0.0)
        scores = {m.name: m.function(logits, batch["label"]) for m in metrics}
        return {"loss": loss(logits, targets), **scores}

    return eval_step


def make_predict_step(
    model: Model, normalize: Normalization
) -> Callable[[dict[str, Tree], jax.Array], jax.Array]:
    """Returns predict_step(variables, images uint8 [B, H, W, C]) -> logits [B, K]."""

    def predict_step(variables: dict[str, Tree], images: jax.Array) -> jax.Array:
        return model.apply(variables, normalize(images), False, None)[0]

    return predict_step


def record_evaluation(
    state: State, value: float, *, higher: bool, min_delta: float, patience: int
) -> State:
    """The state after an evaluation of `value` at `state.step`.

    Updates best (any gain), patience (a gain over `mark` of more than `min_delta`) and,
    where `patience` evaluations passed without such a gain, halted. A value that is not
    finite is never best.
    """
    sign = 1.0 if higher else -1.0
    new = jnp.where(jnp.isfinite(value), sign * jnp.float32(value), -jnp.inf)
    better = new > sign * state.best.value
    gained = new > sign * state.mark + min_delta
    waited = jnp.where(gained, 0, state.patience + 1)
    return state._replace(
        best=Best(
            jnp.where(better, sign * new, state.best.value),
            jnp.where(better, state.step, state.best.step),
        ),
        mark=jnp.where(gained, sign * new, state.mark),
        patience=waited,
        halted=state.halted | ((patience > 0) & (waited >= patience)),
    )


def all_finite(state: State) -> jax.Array:
    """Whether params, batch_stats, optimizer state and average hold finite numbers only."""
    trees = (state.params, state.batch_stats, state.opt_state, state.ema)
    floats = [x for x in jax.tree.leaves(trees) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()


def _average(ema: Tree, params: Tree, batch_stats: Tree, decay: float) -> Tree:
    """The moving average one update later; {} stays {}."""
    if not ema:
        return ema
    now = {"params": params, "batch_stats": batch_stats}
    # Where nothing moved, the very bits: -0.0 and denormals of what is frozen.
    return jax.tree.map(
        lambda a, x: jnp.where(a == x, a, a + (1.0 - decay) * (x - a)), ema, now
    )


def _keep_finite(finite: jax.Array, old: State, new: State, most_skips: int) -> State:
    """`new` where `finite`; else `old`, one step on while skips are left. No host sync."""
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
