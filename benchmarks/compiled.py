"""Train steps compiled for TPUs that need not be there: ``python -m benchmarks.compiled``.

Our step and, where their folders are given, those of flax's ImageNet example and of
big_vision, compiled for a described slice by libtpu. It prints what XLA says of each
program on one device: FLOP, bytes accessed, temporaries, arguments. The figures are exact,
so a ratio has no noise; what a step takes on the device they do not say. The body of a
loop counts once.

    python -m benchmarks.compiled --slice=v5e:2x2 --flax_example=flax/examples/imagenet

`compiled.json` holds our figures, written by ``--write``; a test compiles some of the steps
again and lets none become worse by 1 %.
"""

import argparse
import functools
import importlib
import json
import pathlib
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcls import experiment
from jaxcls.config import loading
from jaxcls.data import sources
from jaxcls.devices import mesh
from jaxcls.devices.topologies import described
from jaxcls.runs import provenance

CLASSES, SIZE, BATCH, SLICE = 1000, 224, 512, "v5e:2x2"
TABLE = pathlib.Path(__file__).with_name("compiled.json")
_PLAIN = {"augment": "flip", "mix": ""}
_VIT = {
    "optim.name": "adamw",
    "optim.lr": 1e-3,
    "optim.weight_decay": 0.1,
    "optim.clip_norm": 1.0,
    "mix": "mixup(0.2)",
    "normalize": "symmetric",
}
# The steps that are compiled: {name: config values}. One with an augmentation is compared
# with the step without.
STEPS: dict[str, dict[str, Any]] = {
    "cnn": {"model.name": "cnn(batch_norm=True)", "optim.name": "adamw", "optim.lr": 1e-3},
    "resnet50": {
        "model.name": "resnet50",
        "optim.name": "sgd(momentum=0.9)",
        "optim.lr": 0.1,
        "optim.weight_decay": 1e-4,
        "normalize": "imagenet",
    },
    "vit_s_16": {"model.name": "vit_s_16(pool='mean', position='sincos')", **_VIT},
    "vit_b_16": {"model.name": "vit_b_16(pool='mean', position='sincos')", **_VIT},
    # Of two blocks, which a test can compile again; the others are the same.
    "vit_s_16_of_2": {
        "model.name": "vit_s_16(pool='mean', position='sincos', depth=2)",
        **_VIT,
    },
}
# The two layers of randaugment(2, 10) one after the other: its scan would count once.
AUGMENTED = ("randaugment(1, 10) | randaugment(1, 10)", "trivialaugment", "three_augment")


class Figures(NamedTuple):
    """What one device does in a step: FLOP, and bytes."""

    flop: float
    accessed: float
    temporaries: int
    arguments: int

    @property
    def line(self) -> str:
        """The figures in words."""
        return (
            f"{self.flop / 1e12:.4f} TFLOP, {self.accessed / 1e9:.2f} GB accessed,"
            f" temporaries {self.temporaries / 2**20:,.0f} MiB,"
            f" arguments {self.arguments / 2**20:,.0f} MiB"
        )

    def over(self, other: "Figures") -> str:
        """The ratios to another step's, in words."""
        flop, accessed = self.flop / other.flop, self.accessed / other.accessed
        temporaries = self.temporaries / other.temporaries
        return f"FLOP {flop:.3f}, bytes {accessed:.3f}, temporaries {temporaries:.3f}"


def versions() -> dict[str, str | None]:
    """Returns the versions of what compiles; other versions give other figures."""
    return provenance.versions(("jax", "jaxlib", "libtpu"))


def figures(program: jax.stages.Compiled) -> Figures:
    """The figures of a compiled step."""
    cost, analysis = program.cost_analysis(), program.memory_analysis()
    assert cost is not None
    assert analysis is not None
    temporaries, arguments = analysis.temp_size_in_bytes, analysis.argument_size_in_bytes
    return Figures(cost["flops"], cost["bytes accessed"], temporaries, arguments)


def ours(values: dict[str, Any], devices: Sequence[Any], batch: int) -> Figures:
    """The figures of our step of a config, for described devices."""
    classes = tuple(f"class{i}" for i in range(CLASSES))
    splits = {"train": 1_281_167}
    facts = sources.Facts("synthetic", "1.0.0", (None, None, 3), CLASSES, classes, splits)
    crop = f"decode | random_resized_crop({SIZE})"
    base = {
        "data.name": "synthetic",
        "data.train_ops": crop,
        "data.eval_ops": f"decode | resize_short({SIZE}) | center_crop({SIZE})",
        "batch_size": batch,
        "length": "90 epochs",
    }
    config = loading.from_flat({**base, **_PLAIN, **values})
    return figures(experiment.build(config, facts, devices).programs.compiled_train_step)


def compiled(
    step: Callable[..., Any], devices: Sequence[Any], state: Any, batch: Any
) -> Figures:
    """The figures of step(state, batch), sharded by examples; the state is donated."""
    on = Mesh(mesh.make(devices=devices).devices, ("batch",))
    everywhere = NamedSharding(on, PartitionSpec())
    rows = NamedSharding(on, PartitionSpec("batch"))

    def placed(tree: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    jitted = jax.jit(step, donate_argnums=0, out_shardings=everywhere)
    with on:
        lowered = jitted.lower(placed(state, everywhere), placed(batch, rows))
    return figures(lowered.compile())


def flax_example(folder: str, devices: Sequence[Any], batch: int) -> Figures:
    """The step of flax's examples/imagenet for ResNet-50 in bfloat16."""
    train, models = _import(folder, "train", "models")
    model = models.ResNet50(num_classes=CLASSES, dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((batch, SIZE, SIZE, 3), jnp.bfloat16)
    label = jax.ShapeDtypeStruct((batch,), jnp.int32)
    rate = train.create_learning_rate_fn(_Dict(warmup_epochs=5.0, num_epochs=100.0), 0.1, 9)
    import optax

    def init(key: jax.Array) -> Any:
        variables = model.init({"params": key}, jnp.ones((1, SIZE, SIZE, 3), jnp.bfloat16))
        return train.TrainState.create(
            apply_fn=model.apply,
            params=variables["params"],
            tx=optax.sgd(learning_rate=rate, momentum=0.9, nesterov=True),
            batch_stats=variables["batch_stats"],
            dynamic_scale=None,
        )

    # Their step is one of pmap: means over the axis "batch", BatchNorm on each device.
    step = jax.shard_map(
        functools.partial(train.train_step, learning_rate_fn=rate),
        mesh=Mesh(mesh.make(devices=devices).devices, ("batch",)),
        in_specs=(PartitionSpec(), PartitionSpec("batch")),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    state = jax.eval_shape(init, jax.random.key(0))
    return compiled(step, devices, state, {"image": image, "label": label})


def big_vision(folder: str, name: str, devices: Sequence[Any], batch: int) -> Figures:
    """The step of big_vision's train.py for a ViT of its vit_s16_i1k, in bfloat16."""
    vit, optimizers, utils = _import(
        folder, "big_vision.models.vit", "big_vision.optax", "big_vision.utils"
    )
    import optax

    model = vit.Model(
        num_classes=CLASSES,
        variant=f"{name[4].upper()}/16",
        rep_size=False,
        pool_type="gap",
        posemb="sincos2d",
        dtype_mm="bfloat16",
    )
    image = jax.ShapeDtypeStruct((batch, SIZE, SIZE, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch, CLASSES), jnp.float32)
    config = _Dict(
        optax_name="scale_by_adam",
        optax={"mu_dtype": "bfloat16"},
        grad_clip_norm=1.0,
        lr=1e-3,
        wd=1e-4,
        schedule={"warmup_steps": 10_000, "decay_type": "cosine"},
    )
    key = jax.random.key(0)
    params = jax.eval_shape(
        lambda: model.init(key, jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    )
    counts = {"total_steps": 100_000, "batch_size": batch, "data_size": 1_281_167}
    optimizer, _ = optimizers.make(config, params, sched_kw=counts)
    opt = jax.eval_shape(optimizer.init, params)

    def step(state: Any, given: Any) -> Any:
        params, opt = state["params"], state["opt"]
        key = jax.random.fold_in(
            jax.random.PRNGKey(0), optimizers.get_count(opt, jittable=True)
        )
        mixed = jax.shard_map(
            utils.get_mixup(key, 0.2),
            mesh=Mesh(mesh.make(devices=devices).devices, ("batch",)),
            in_specs=PartitionSpec("batch"),
            out_specs=(PartitionSpec(), PartitionSpec("batch"), PartitionSpec("batch")),
            check_vma=False,
        )
        _, (images, labels), _ = mixed(given["image"], given["labels"])

        def loss_of(params: Any) -> jax.Array:
            logits, _ = model.apply({"params": params}, images, train=True)
            found: jax.Array = utils.softmax_xent(logits=logits, labels=labels)
            return found

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt = optimizer.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        norms = [optax.global_norm(tree) for tree in (grads, params, updates)]
        return {"params": params, "opt": opt}, (loss, norms)

    given = {"image": image, "labels": labels}
    return compiled(step, devices, {"params": params, "opt": opt}, given)


class _Dict(dict[str, Any]):
    """What the peers read of their configs: items as attributes, and nested ones."""

    def __getattr__(self, name: str) -> Any:
        value = self.get(name)
        return _Dict(value) if isinstance(value, dict) else value


class _Anything(types.ModuleType):
    """A stand-in of a module that the steps do not call."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self


_UNUSED = (
    *("clu", "clu.metric_writers", "clu.periodic_actions", "clu.parameter_overview"),
    *("tensorflow", "tensorflow.io", "tensorflow.io.gfile", "tensorflow_datasets"),
    "input_pipeline",
)


def _import(folder: str, *names: str) -> list[Any]:
    """Imports modules of a peer's folder, without what only its input needs."""
    # It asks for TensorFlow itself, so before a stand-in is there.
    importlib.import_module("flax.training.checkpoints")
    sys.path.insert(0, folder)
    before = {name: sys.modules.get(name) for name in _UNUSED}
    sys.modules.update({name: _Anything(name) for name in _UNUSED})
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(folder)
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def main() -> None:
    """Prints the figures of each step, and the ratios to the peers'."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slice", default=SLICE, help="of TPU chips, such as v6e:2x2")
    parser.add_argument("--batch", type=int, default=BATCH, help="of all devices")
    parser.add_argument("--steps", default=",".join(STEPS), help="of these, by commas")
    parser.add_argument(
        "--augmented", action="store_true", help="also with each costly augmentation"
    )
    parser.add_argument("--flax_example", default="", help="folder of examples/imagenet")
    parser.add_argument("--big_vision", default="", help="folder that holds big_vision/")
    parser.add_argument("--write", action="store_true", help="write compiled.json")
    args = parser.parse_args()
    if args.write and (args.slice, args.batch) != (SLICE, BATCH):
        parser.error(f"--write is of --slice={SLICE} and --batch={BATCH}; leave them out")
    devices, _ = described(args.slice, "--slice")
    mesh.pretend(1)
    print(f"{args.slice}, batch {args.batch}, jax {jax.__version__}: one device")
    table: dict[str, Any] = {"versions": versions(), "steps": {}}
    for name in args.steps.split(","):
        found = ours(STEPS[name], devices, args.batch)
        print(f"{name}: {found.line}", flush=True)
        table["steps"][name] = found._asdict()
        peer, title = None, ""
        if name == "resnet50" and args.flax_example:
            peer = flax_example(args.flax_example, devices, args.batch)
            title = "flax's example"
        elif name.endswith("_16") and args.big_vision:
            peer = big_vision(args.big_vision, name, devices, args.batch)
            title = "big_vision"
        if peer:
            print(f"  {title}: {peer.line}; ours over it: {found.over(peer)}", flush=True)
        for call in AUGMENTED if args.augmented else ():
            values = {**STEPS[name], "augment": f"flip | {call}"}
            more = ours(values, devices, args.batch)
            print(f"  {call}: {more.line}; over none: {more.over(found)}", flush=True)
    if args.write:
        TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
