"""config -> Plan: the numbers that a run comes to, its model and which of it trains.

What a config implies (steps, rate, sizes, classes) is computed here, once; nothing here
is compiled. See recipe.py for how it trains.
"""

import contextlib
import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxcls import config as configs
from jaxcls import durations, mesh, parts, pipeline, sources, step
from jaxcls.data import Data
from jaxcls.errors import InputError
from jaxcls.models import MODELS, Classifier, naming
from jaxcls.models.layers import batch_norm_groups, blocks_of, rematerialised
from jaxcls.parts import Parts

# Streams of device randomness, each its own key, so that one can be varied alone.
_STREAMS = {"init": 0, "augment": 1, "dropout": 2}


class Plan:
    """A config's numbers and its model, each made when first asked for."""

    def __init__(
        self,
        config: ConfigDict,
        facts: sources.Facts | None,
        devices: Sequence[Any] | None = None,
    ) -> None:
        self.config, self._devices = config, devices
        self.data = Data(config, facts, lambda: self.mesh)

    # What the config implies.

    @functools.cached_property
    def examples(self) -> int:
        """How many examples one epoch has."""
        return self.count("train")

    def count(self, role: str) -> int:
        """Examples of data.train, data.eval or data.test; 0 where the split is ''."""
        split = self.config.data[role]
        return self.data.count(split, f"data.{role}") if split else 0

    @functools.cached_property
    def steps(self) -> int:
        """Updates of the whole run."""
        steps = durations.step_of(1, self._duration("length"))
        if steps >= 2**31:
            raise InputError(
                f"length={self.config.length!r} is {steps:.1e} steps, over 2**31"
            )
        if steps < 1:
            raise InputError(
                f"length={self.config.length!r} is less than one batch of"
                f" batch_size={self.config.batch_size}; train longer or take less"
            )
        return steps

    @functools.cached_property
    def every(self) -> dict[str, Fraction]:
        """Steps, exactly, between evaluations ("eval"), "checkpoint"s and "log" records."""
        return {
            name: self._duration(f"{name}.every", self.steps)
            for name in ("eval", "checkpoint", "log")
        }

    @functools.cached_property
    def lr(self) -> float:
        """The peak learning rate in effect: optim.lr, scaled where optim.lr_per is set."""
        optim = self.config.optim
        return (
            optim.lr * self.config.batch_size / optim.lr_per if optim.lr_per else optim.lr
        )

    @functools.cached_property
    def warmup(self) -> int:
        """Steps of linear warm-up."""
        return self._part_of_run("optim.warmup")

    @functools.cached_property
    def cooldown(self) -> int:
        """Steps of the linear end."""
        cooldown = self._part_of_run("optim.cooldown")
        if self.warmup + cooldown > self.steps:
            raise InputError(
                f"optim.warmup and optim.cooldown are {self.warmup} and {cooldown} steps"
                f" and the whole run has {self.steps}; try '5 percent' and '20 percent'"
            )
        return cooldown

    @functools.cached_property
    def head_first(self) -> int:
        """Steps in which the head trains alone."""
        return self._part_of_run("optim.head_first")

    @functools.cached_property
    def stops(self) -> dict[str, int]:
        """The step at which what each expression of optim.freeze_after matches freezes."""
        key = "optim.freeze_after"
        example = "{'^stem/': '3 epochs'}"
        texts = pipeline.table(self.config.optim.freeze_after, key, example=example)
        return {
            pattern: durations.step_of(1, self.in_steps(text, key, self.steps))
            for pattern, text in texts.items()
        }

    def _part_of_run(self, key: str) -> int:
        """The steps of a duration that must be shorter than the run."""
        found = durations.step_of(1, self._duration(key, self.steps))
        if found >= self.steps:
            text = configs.flat(self.config)[key]
            raise InputError(
                f"{key}={text!r} is {found} steps and the whole run has {self.steps}; try"
                " '10 percent'"
            )
        return found

    def _duration(self, key: str, total: int | None = None) -> Fraction:
        return self.in_steps(configs.flat(self.config)[key], key, total)

    def in_steps(self, text: str, key: str, total: int | None = None) -> Fraction:
        """A duration's text in steps; raises `InputError` naming `key`."""
        return durations.to_steps(
            text,
            key,
            examples=self.examples,
            batch_size=self.config.batch_size,
            total=total,
        )

    # The pure half.

    @functools.cached_property
    def dtype(self) -> Any:
        """Of the computation, with "auto" decided by the mesh."""
        name = self.config.model.dtype
        if name == "auto":
            name = "bfloat16" if mesh.is_accelerator(self.mesh) else "float32"
        return jnp.dtype(name)

    @functools.cached_property
    def module(self) -> Classifier:
        """The model as a Flax module."""
        return pipeline.build_one(
            self.config.model.name,
            MODELS,
            "model.name",
            num_classes=self.data.num_classes,
            dtype=self.dtype,
        )

    def numerics(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of products in what is traced within."""
        precision = self.config.model.matmul_precision
        if not precision:
            return contextlib.nullcontext()
        return jax.default_matmul_precision(precision)

    @functools.cached_property
    def variables_like(self) -> dict[str, Any]:
        """The model's {"params", "batch_stats"} as shapes."""
        image = jax.ShapeDtypeStruct((1, *self.data.train_shape), jnp.float32)
        made = jax.eval_shape(
            lambda images: self.module.init(jax.random.key(0), images, False), image
        )
        return {"params": made["params"], "batch_stats": made.get("batch_stats", {})}

    def _divided(self, head_first: int, stops: dict[str, int]) -> Parts:
        optim = self.config.optim
        return parts.divide(
            self.variables_like["params"],
            self.module.groups(),
            freeze=optim.freeze,
            layer_decay=optim.layer_decay,
            head_lr=optim.head_lr,
            head_first=head_first,
            lr_scales=pipeline.table(
                optim.lr_scales, "optim.lr_scales", example="{'bias$': 2.0}"
            ),
            stops=stops,
        )

    @functools.cached_property
    def frozen_parts(self) -> Parts:
        """`train_parts` but for when each trains, which takes the length of an epoch."""
        return self._divided(0, {})

    @functools.cached_property
    def train_parts(self) -> Parts:
        """How each parameter trains."""
        return self._divided(self.head_first, self.stops)

    @functools.cached_property
    def pieces(self) -> int:
        """Pieces of the batch whose gradients are taken one after the other."""
        groups, pieces = self.config.model.batch_norm_groups, self.config.optim.accumulate
        statistics = self.variables_like["batch_stats"]
        frozen = naming.flatten(parts.frozen_statistics(statistics, self.frozen_parts))
        moving = naming.flatten(statistics).keys() - frozen.keys()
        has_norm = any(path.endswith("var") for path in moving)
        if has_norm and groups % pieces:
            raise InputError(
                f"optim.accumulate={pieces} would give BatchNorm other statistics than the"
                f" whole batch; say that they are the pieces': model.batch_norm_groups="
                f"{pieces}"
            )
        return pieces

    @functools.cached_property
    def rematerialised_blocks(self) -> set[str]:
        """The blocks that a gradient computes anew."""
        if not self.config.model.remat:
            return set()
        if found := blocks_of(self.module.groups()):
            return found
        raise InputError(
            f"model.remat={self.config.model.remat!r}: model.name="
            f"{self.config.model.name!r} is not made of blocks, as 'vit_s_16' and"
            " 'resnet50' are; leave model.remat at ''"
        )

    @functools.cached_property
    def model(self) -> step.Model:
        """The model as pure functions."""
        module, frozen = self.module, {}
        if self.config.optim.freeze:
            statistics = self.variables_like["batch_stats"]
            frozen = {"frozen": parts.frozen_statistics(statistics, self.frozen_parts)}
        groups = max(1, self.config.model.batch_norm_groups // self.pieces)
        blocks, in_parts = self.rematerialised_blocks, mesh.fsdp_of(self.mesh) > 1
        whole = functools.partial(mesh.gathered, self.mesh) if in_parts else None

        def init(key: jax.Array, images: jax.Array) -> dict[str, Any]:
            return module.init({"params": key}, images, False)

        def given(variables: dict[str, Any], but: set[str]) -> dict[str, Any]:
            """Variables with params made whole where they are in parts, `but` some."""
            if not whole:
                return variables
            params = variables["params"]
            own = {name: each for name, each in params.items() if name not in but}
            return {**variables, "params": {**params, **whole(own)}}

        def apply(
            variables: dict[str, Any], images: jax.Array, train: bool, key: jax.Array | None
        ) -> tuple[jax.Array, Any]:
            with self.numerics():
                if not train:
                    out = module.apply(given(variables, set()), images, False)
                    return out.logits, variables["batch_stats"]
                # A block's params are made whole inside it, and so again for its gradient:
                # all of them at once would be kept from the forward to the backward pass.
                with batch_norm_groups(groups), rematerialised(blocks, whole):
                    out, updated = module.apply(
                        {**given(variables, blocks), **frozen},
                        images,
                        True,
                        mutable=["batch_stats"],
                        rngs={"dropout": key},
                    )
                return out.logits, updated.get("batch_stats", {})

        return step.Model(init, apply)

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices of the run."""
        return mesh.make(self.config.mesh.devices, self.config.mesh.fsdp, self._devices)

    def keys(self) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The key of init, and those that the state carries."""
        keys = {}
        for name, i in _STREAMS.items():
            seed = configs.seed_of(self.config, name)
            keys[name] = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), i)
        return keys.pop("init"), keys
