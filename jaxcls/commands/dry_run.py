"""Description of a run from shapes only: ``jaxcls train ... --dry_run``."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.config.loading import to_text
from jaxcls.data import told
from jaxcls.data.pipeline import ROLES
from jaxcls.devices import mesh
from jaxcls.devices.memory import activation_bytes, explained, step_bytes, tree_bytes
from jaxcls.experiment import Experiment
from jaxcls.experiment.checks import check, notes
from jaxcls.training.meter import duration

# Steps that are timed, after one that is not.
_TIMED = 3


def describe(
    exp: Experiment, compiled: bool = False, room: int = 0, timed: bool = False
) -> str:
    """Returns the model, data, steps, learning rate, memory and config of a run as text.

    It traces the train step, so that errors of the step appear here; it needs no dataset.
    compiled: also compiles the step for the devices of its mesh, and adds its memory.
    room: memory of a device in bytes; 0: unknown.
    timed: also runs the step there, where it fits, on random images, and adds its time.
    """
    check(exp)
    shapes = exp.programs.state_shapes
    params = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes.params))
    devices, batch_size = exp.mesh.size, exp.config.batch_size
    rows = {
        "model": f"{exp.config.model.name}, {params:,} parameters,"
        f" {exp.recipe.dtype} compute",
        "images": f"train {' then '.join(map(_by, exp.data.train_shapes))},"
        f" eval {_by(exp.data.eval_shape)}; {exp.selection.num_classes} classes",
        "eval images": told.preprocessing(exp.config),
        "examples": ", ".join(f"{role} {exp.data.examples(role):,}" for role in ROLES),
        "steps": f"{exp.plan.steps:,} of {batch_size} examples"
        f" ({exp.plan.steps * batch_size / exp.plan.examples:.4g} epochs)",
        "batch": f"{batch_size}, {batch_size // devices} on each of {devices}"
        f" {exp.mesh.devices.flat[0].device_kind} device(s)",
        "learning rate": f"peak {exp.plan.lr:g} after {exp.plan.warmup:,} steps of warm-up,"
        f" then {exp.config.optim.schedule}"
        + (f", {exp.plan.cooldown:,} of cool-down" if exp.plan.cooldown else ""),
        "memory": _memory(exp),
    }
    if compiled:
        rows["compiled"] = _compiled(exp, room)
    if timed:
        rows["time"] = _time(exp)
    if exp.config.distill.run:
        rows["teacher"] = exp.config.distill.run
    if exp.initial:
        rows["weights"] = "; ".join(exp.initial.notes)
    if noted := notes(exp):
        rows["note"] = "; ".join(noted)
    lines = [f"{name + ':':<15}{text}\n" for name, text in rows.items()]
    return "".join(lines) + "\n" + to_text(exp.config).rstrip("\n")


def _memory(exp: Experiment) -> str:
    """Returns the estimated memory of one device."""
    shapes, held = exp.programs.state_shapes, exp.programs.state_of_a_device
    optim = exp.config.optim
    size = exp.config.batch_size // optim.accumulate
    images = jax.ShapeDtypeStruct((size, *exp.data.train_shape), jnp.float32)

    def forward(params: Any, batch_stats: Any, images: jax.Array, key: jax.Array) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        return exp.recipe.model.apply(variables, images, True, key)

    arguments = shapes.params, shapes.batch_stats, images, shapes.key["dropout"]
    kept = activation_bytes(forward, size, *arguments) // exp.mesh.size
    state = tree_bytes(held) + tree_bytes(held.params)
    if optim.accumulate > 1 or optim.sam:  # Summed gradients, or SAM's params.
        state += tree_bytes(held.params)
    if exp.teacher:
        state += tree_bytes(exp.teacher.variables)
    # The estimate keeps what the gradient of each layer needs.
    is_part = optim.freeze or optim.lora
    return (
        f"{'at most' if is_part else 'about'} {_size(state + kept)} a device: state and"
        f" gradients {_size(state)}, activations {_size(kept)}"
    )


def _compiled(exp: Experiment, room: int) -> str:
    """Returns the memory of the compiled step on one device, from XLA's analysis."""
    also = ", model.remat=blocks, optim.accumulate=2 or mesh.fsdp=2"
    with explained("batch_size", exp.config.batch_size, also):
        analysis = exp.programs.compiled_train_step.memory_analysis()
    if analysis is None:
        return "the compiler does not say what the step needs"
    kind = exp.mesh.devices.flat[0].device_kind
    arguments = analysis.argument_size_in_bytes
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    of_room = f" of {_size(room)}" if room else ""
    text = (
        f"{_size(step_bytes(analysis))}{of_room} on each of {exp.mesh.size} {kind}"
        f" device(s): arguments {_size(arguments)}"
        f" (state {_size(tree_bytes(exp.programs.state_of_a_device))}),"
        f" temporaries {_size(analysis.temp_size_in_bytes)},"
        f" outputs besides the state {_size(outputs)}"
    )
    if kind == "cpu":
        text += "; an accelerator's temporaries differ, and CPUs undo model.remat"
    return text


def _time(exp: Experiment) -> str:
    """Returns the time of a step on the devices that there are, and of all steps."""
    needed = step_bytes(exp.programs.compiled_train_step.memory_analysis())
    limit = mesh.memory_limit(exp.mesh)
    if limit is not None and needed > limit:
        return f"not measured: it needs {_size(needed)} a device and has {_size(limit)}"
    rng = np.random.default_rng(0)

    def made(like: Any) -> jax.Array:
        """Returns random pixels of images, keys, and zeros of all else."""
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return jax.device_put(
                jax.random.split(jax.random.key(0), like.shape), like.sharding
            )
        most = 256 if like.dtype == np.uint8 else 1
        array = rng.integers(0, most, like.shape).astype(like.dtype)
        return jax.device_put(array, like.sharding)

    took = []
    with explained("batch_size", exp.config.batch_size):
        shapes = exp.programs.state_like, exp.programs.batch_like
        state, batch = jax.tree.map(made, shapes)
        for _ in range(1 + _TIMED):
            begin = time.perf_counter()
            state, _ = jax.block_until_ready(exp.programs.train_step(state, batch))
            took.append(time.perf_counter() - begin)
    step, steps, of = statistics.median(took[1:]), exp.plan.steps, "the run's"
    if exp.config.probe.penalties:  # It computes features, for which this step stands.
        examples = exp.data.examples("train") + exp.data.examples("eval")
        steps, of = -(-examples // exp.config.batch_size), "the features'"
    largest = " of the largest images" if len(exp.data.train_shapes) > 1 else ""
    return (
        f"{step:.3g} s a step{largest} (median of {_TIMED}, without input), so about"
        f" {duration(step * steps)} for {of} {steps:,}"
    )


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _size(n: int) -> str:
    return f"{n / 2**20:,.1f} MiB" if n < 2**30 else f"{n / 2**30:,.2f} GiB"
