"""Description of a run from shapes only: ``jaxcls train ... --dry_run``."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.config.loading import to_text
from jaxcls.data import told
from jaxcls.data.pipeline import ROLES
from jaxcls.devices.memory import activation_bytes, explained, step_bytes, tree_bytes
from jaxcls.experiment import Experiment
from jaxcls.experiment.checks import check, notes


def describe(exp: Experiment, compiled: bool = False, room: int = 0) -> str:
    """Returns the model, data, steps, learning rate, memory and config of a run as text.

    It traces the train step, so that errors of the step appear here; it needs no dataset.
    compiled: also compiles the step for the devices of its mesh, and adds its memory.
    room: memory of a device in bytes; 0: unknown.
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
    return (
        f"about {_size(state + kept)} a device: state and gradients {_size(state)},"
        f" activations {_size(kept)}"
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


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _size(n: int) -> str:
    return f"{n / 2**20:,.1f} MiB" if n < 2**30 else f"{n / 2**30:,.2f} GiB"
