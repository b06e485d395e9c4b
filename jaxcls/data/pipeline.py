"""A run's data: config -> batches on the mesh.

The config sets the order of the examples and the host ops. It also sets whether decoded
images stay on the device.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcls.config import calls
from jaxcls.config import loading as configs
from jaxcls.config.plugins import NONE, Plugins
from jaxcls.data import batches, decode, sources
from jaxcls.data.batch import Batch
from jaxcls.data.selection import Selection
from jaxcls.devices import mesh
from jaxcls.errors import InputError

# The roles of splits: training, selection of the best step, and one final score.
ROLES = ("train", "eval", "test")
# The splits that are read time and again, and their ops; others are not worth keeping.
REPEATED = {"data.train": "train_ops", "data.eval": "eval_ops"}
# With data.resident="auto", a split of up to this many bytes of decoded images stays on
# the device. The limit is constant, so that every host of a run decides the same.
RESIDENT_BYTES = 512 * 2**20


class Data:
    """The batches of a config; everything is read on first use.

    selection: the examples in use. devices: the devices to build the mesh from; None means
    all. plugins: what is looked up beside our own host ops.
    """

    def __init__(
        self,
        config: ConfigDict,
        facts: sources.Facts | None,
        devices: Sequence[Any] | None = None,
        plugins: Plugins = NONE,
    ) -> None:
        self.config, self._plugins = config, plugins
        self.selection = Selection(config, facts)
        self._devices = devices
        # (split, its config key) -> its images and labels.
        self._resident: dict[tuple[str, str], Batch] = {}

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh that the batches are on."""
        return mesh.make(self.config.mesh.devices, self.config.mesh.fsdp, self._devices)

    def examples(self, role: str) -> int:
        """Returns the number of examples in use; 0 if the config names no split.

        role: "train", "eval" or "test".
        """
        split = self.config.data[role]
        return self.selection.count(split, f"data.{role}") if split else 0

    def of_config(self, config: ConfigDict) -> "Data":
        """Returns the data of a config with other seeds or residence, of one dataset."""
        other = copy.copy(self)
        other.config = config
        other.__dict__.pop("_order", None)
        return other

    def through(self, op: decode.Op, seed: int) -> "Data":
        """Returns a copy whose evaluations apply one more op, which draws by `seed`.

        The copy keeps no images on the device.
        """
        values = {"data.resident": "off", "seeds.augment": seed}
        other = self.of_config(configs.from_flat({**configs.flat(self.config), **values}))
        other.eval_ops = [*self.eval_ops, op]
        return other

    # The order of examples.

    @functools.cached_property
    def _order(self) -> batches.Order:
        """Maps an epoch to the examples [n] of data.train in that epoch's order."""
        return self._order_by(configs.seed_of(self.config, "order"))

    def _order_by(self, seed: int) -> batches.Order:
        if not self.config.data.balance:
            n = self.selection.count(self.config.data.train, "data.train")
            return lambda epoch: batches.order(seed, epoch, n)
        labels = self.selection.train_labels()
        return functools.lru_cache(maxsize=3)(
            lambda epoch: batches.balanced_order(seed, epoch, labels)
        )

    @property
    def order_name(self) -> str:
        """The name of the training order in the run's folder."""
        return batches.BALANCED_ORDER if self.config.data.balance else batches.ORDER

    # The host ops and their output shapes.

    @functools.cached_property
    def train_stages(self) -> list[tuple[float, list[decode.Op]]]:
        """The stages of training: (start as a share of the run, host ops).

        There is one stage unless sizes grow.
        """
        ops = self._ops("train_ops")
        growing = [op for op in ops if isinstance(op, decode.Growing)]
        starts = sorted({0.0, *(start for op in growing for start, _ in op.parts)})
        return [
            (start, [op.at(start) if isinstance(op, decode.Growing) else op for op in ops])
            for start in starts
        ]

    @functools.cached_property
    def eval_ops(self) -> list[decode.Op]:
        """The host ops of evaluation and prediction."""
        ops = self._ops("eval_ops")
        if any(isinstance(op, decode.Growing) for op in ops):
            raise InputError(
                f"data.eval_ops={self.config.data.eval_ops!r}: a size grows in training"
                " only; give one, such as resize(224)"
            )
        return ops

    @functools.cached_property
    def host_ops(self) -> dict[str, Callable[..., decode.Op | decode.Growing]]:
        """The table of host ops, by name."""
        ours = {**decode.HOST_OPS, **decode.RANDOM_HOST_OPS}
        still = self._plugins.added_to("HOST_OPS", ours)
        for name in still.keys() - ours.keys():
            still[name] = decode.undrawn(name, still[name])
        return self._plugins.added_to("RANDOM_HOST_OPS", still)

    def random_op(self, name: str) -> str | None:
        """Returns the first random op of data.`name`, "train_ops" or "eval_ops", if any."""
        theirs = self._plugins.tables.get("RANDOM_HOST_OPS", {})
        random = {*decode.RANDOM_HOST_OPS, *theirs}
        named = calls.parse(self.config.data[name], f"data.{name}")
        return next((call.name for call in named if call.name in random), None)

    def _ops(self, name: str) -> list[Any]:
        return calls.build(self.config.data[name], self.host_ops, f"data.{name}")

    @functools.cached_property
    def eval_shape(self) -> tuple[int, int, int]:
        """The shape (H, W, C) of the model's input images in evaluation."""
        shape = self.selection.facts.image_shape
        return batches.output_shape(self.eval_ops, shape, "data.eval_ops")

    @functools.cached_property
    def train_shapes(self) -> list[tuple[int, int, int]]:
        """The image shape (H, W, C) of each stage of training."""
        shapes = [
            batches.output_shape(ops, self.selection.facts.image_shape, "data.train_ops")
            for _, ops in self.train_stages
        ]
        if shapes[0][2] != self.eval_shape[2]:
            raise InputError(
                f"data.train_ops gives {shapes[0][2]} channels and data.eval_ops"
                f" {self.eval_shape[2]}; give decode the same number in both"
            )
        return shapes

    @property
    def train_shape(self) -> tuple[int, int, int]:
        """The largest of `train_shapes`."""
        return max(self.train_shapes, key=math.prod)

    # Batches.

    def train_batches(self, start: int, steps: int) -> Iterator[Batch]:
        """Yields the batches of steps start..steps-1 on the mesh, with epoch.

        steps: the length of the run.
        """
        split = self.config.data.train
        firsts = [round(share * steps) for share, _ in self.train_stages]
        for (_, ops), first, end in zip(
            self.train_stages, firsts, [*firsts[1:], steps], strict=True
        ):
            plans = self._train_plans(max(first, start), end)
            yield from self._batches("train_ops", ops, split, "data.train", plans)

    def train_columns(self, start: int, steps: int) -> Iterator[Batch]:
        """Yields the batches of `train_batches` on this host, without images and labels.

        `train_resident` holds the images and labels at the rows in index.
        """
        return (plan.columns for plan in self._train_plans(start, steps))

    def _train_plans(
        self, start: int, stop: int, rows: slice | None = None
    ) -> Iterator[batches.BatchPlan]:
        """Yields the plans of steps start..stop-1; rows: by default those of this host."""
        size = self.config.batch_size
        return batches.train_plans(
            self._order,
            self.selection.count(self.config.data.train, "data.train"),
            size,
            rows or mesh.host_rows(size),
            start=start,
            stop=stop,
            repeats=self.config.data.repeats,
        )

    def sample(self, count: int) -> np.ndarray:
        """Returns decoded training images, uint8 [n, H, W, C].

        n is `count`, or fewer if the split is smaller. They serve the initialisation, so
        the seed of init chooses them. They are the same on every host.
        """
        seed = configs.seed_of(self.config, "init")
        chosen = self._order_by(seed)(0)[:count]
        plan = batches.BatchPlan(np.arange(len(chosen)), Batch(index=chosen))
        records = self.selection.records(self.config.data.train, "data.train")
        ops = self.train_stages[0][1]
        return next(batches.decoded(records, ops, [plan], seed=seed)).image

    def train_examples(self, step: int) -> np.ndarray:
        """Returns the records [B] int64 of the batch of `step`.

        They are counted in `selection.pooled` of data.train.
        """
        (plan,) = self._train_plans(step, step + 1, slice(0, self.config.batch_size))
        return self.selection.used(self.config.data.train, "data.train")[plan.columns.index]

    def eval_batches(self, split: str, key: str, batch_size: int) -> Iterator[Batch]:
        """Yields every example of a split once, on the mesh, with mask; index is 0..n-1.

        key: the config key or flag that `split` comes from.
        """
        rows = mesh.host_rows(batch_size)
        plans = batches.eval_plans(self.selection.count(split, key), batch_size, rows)
        return self._batches("eval_ops", self.eval_ops, split, key, plans)

    def _batches(
        self,
        name: str,
        ops: list[decode.Op],
        split: str,
        key: str,
        plans: Iterator[batches.BatchPlan],
    ) -> Iterator[Batch]:
        """Yields the planned batches, from images on the device or decoded on demand."""
        if self._is_resident(name, split, key):
            take, arrays = self.take, self._on_device(split, key)
            for plan in plans:
                columns = mesh.put(self.mesh, plan.columns)
                taken = take(arrays, columns.index)
                yield columns._replace(image=taken.image, label=taken.label)
            return
        for batch in self._decoded(split, key, ops, plans):
            yield mesh.put(self.mesh, batch)

    def _decoded(
        self, split: str, key: str, ops: list[decode.Op], plans: Iterator[batches.BatchPlan]
    ) -> Iterator[Batch]:
        """Yields the planned batches on this host; labels are the model's class numbers."""
        data, numbers = self.config.data, self.selection.class_numbers
        for batch in batches.decoded(
            self.selection.records(split, key),
            ops,
            plans,
            seed=configs.seed_of(self.config, "augment"),
            threads=data.threads,
            prefetch=data.prefetch,
        ):
            batches.check_labels(batch, len(numbers), f"{key}={split!r}")
            labels = numbers[batch.label]
            if (wrong := np.flatnonzero(labels < 0)).size:
                raise InputError(
                    f"{key}={split!r}: record {batch.index[wrong[0]]} of those in use has"
                    f" label {batch.label[wrong[0]]}, and the dataset's file of labels says"
                    " another; prepare the dataset again"
                )
            yield batch._replace(label=labels)

    # Decoded images on the device.

    @property
    def is_train_resident(self) -> bool:
        """Whether the training images are decoded once and kept on the device."""
        return self._is_resident("train_ops", self.config.data.train, "data.train")

    def train_resident(self) -> Batch:
        """Returns image [n, H, W, C] and label [n] of data.train, on every device."""
        return self._on_device(self.config.data.train, "data.train")

    def resident_bytes(self) -> int:
        """Returns the bytes of decoded images that a run keeps on each device."""
        given = ((name, self.config.data[key[5:]], key) for key, name in REPEATED.items())
        return sum(
            self._decoded_bytes(split, key)
            for name, split, key in given
            if split and self._is_resident(name, split, key)
        )

    def _decoded_bytes(self, split: str, key: str) -> int:
        shape = self.train_shape if key == "data.train" else self.eval_shape
        return self.selection.count(split, key) * math.prod(shape)

    def _is_resident(self, name: str, split: str, key: str) -> bool:
        """Returns whether a split's images, decoded by data.`name`, stay on the device.

        Raises `InputError` if data.resident is on and the ops are random.
        """
        kind = self.config.data.resident
        if kind == "off" or REPEATED.get(key) != name:
            return False
        drawn = self.random_op(name)
        if not drawn:
            return kind == "on" or self._decoded_bytes(split, key) <= RESIDENT_BYTES
        if kind == "auto":
            return False
        raise InputError(
            f"data.resident=on: data.{name} holds {drawn}, which gives other pixels"
            " each time; crop with augment='random_crop(4)', or leave it auto"
        )

    def _on_device(self, split: str, key: str) -> Batch:
        """Returns image [n, H, W, C] and label [n] of a split, on every device."""
        if (split, key) not in self._resident:
            ops = self.train_stages[0][1] if key == "data.train" else self.eval_ops
            plans = batches.eval_plans(self.selection.count(split, key), 256, slice(0, 256))
            parts = list(self._decoded(split, key, ops, plans))
            image = np.concatenate([part.image[part.mask] for part in parts])
            label = np.concatenate([part.label[part.mask] for part in parts])
            self._resident[split, key] = mesh.put_everywhere(self.mesh, Batch(image, label))
        return self._resident[split, key]

    def train_resident_like(self) -> Batch:
        """Returns the shapes of `train_resident`, for compilation."""
        n = self.selection.count(self.config.data.train, "data.train")
        like = functools.partial(jax.ShapeDtypeStruct, sharding=mesh.replicated(self.mesh))
        images, labels = like((n, *self.train_shape), np.uint8), like((n,), np.int32)
        return Batch(images, labels)

    @functools.cached_property
    def take(self) -> Callable[[Batch, jax.Array], Batch]:
        """The jitted gather (arrays [n, ...], index [B]) -> arrays [B, ...]."""
        everywhere, rows = mesh.replicated(self.mesh), mesh.by_example(self.mesh)
        return jax.jit(
            lambda arrays, index: jax.tree.map(lambda each: each[index], arrays),
            in_shardings=(everywhere, rows),
            out_shardings=rows,
        )
