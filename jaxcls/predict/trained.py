"""A trained model as an object of Python: ``run = jaxcls.load("runs/photos")``.

It calls the functions that the verbs `predict` and `evaluate` call.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from PIL import Image

from jaxcls.config.plugins import NONE, Plugins
from jaxcls.data import clean
from jaxcls.data.files import Bad
from jaxcls.errors import InputError
from jaxcls.evaluation import assess, examples, scoring
from jaxcls.experiment import published
from jaxcls.experiment.published import Published
from jaxcls.predict import inference
from jaxcls.predict.inference import BATCH_SIZE, Prediction, Source, Step
from jaxcls.runs import records
from jaxcls.runs.workdir import Workdir

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray


class Predictions(NamedTuple):
    """The answers for n images, in their order.

    probabilities: float32 [n, K]. names: The most probable class of each image.
    class_names: The classes of the K columns.
    """

    probabilities: np.ndarray
    names: tuple[str, ...]
    class_names: tuple[str, ...]


class TrainedRun:
    """A run's model at one of its checkpoints, or published weights; it needs no data.

    Args:
        place: The folder of the run, or `Published` weights.
        checkpoint: "best", "last", or a step.
        overrides: Values of operational config keys, such as {"data.dir": "DIR"}; with
            published weights, of any.
        plugins: The plug-ins that the run was trained with, from `plugins.load`.

    Raises `InputError` if the folder holds no run, or no such checkpoint, and for weights
    of another model.

    Attributes:
        step: The step of the checkpoint; 0 of published weights.
        notes: Lines about what published weights are taken for: names, classes, images.
        variables: {"params", "batch_stats"} for `apply`: the average, if the run has one.
    """

    def __init__(
        self,
        place: str | os.PathLike[str] | Published,
        checkpoint: str | int = "best",
        overrides: Mapping[str, Any] | None = None,
        plugins: Plugins = NONE,
    ) -> None:
        texts = {key: str(value) for key, value in (overrides or {}).items()}
        where = place if isinstance(place, Published) else os.fspath(place)
        loaded = scoring.load(where, str(checkpoint), texts, plugins)
        self._place = where
        self._exp, self.step, _, self._weights = loaded
        self.notes = [] if isinstance(where, str) else published.notes(self._exp)
        self.variables = self._exp.recipe.variables(self._weights)
        self._steps: dict[bool, Step] = {}

    def __repr__(self) -> str:
        name = self._exp.config.model.name
        given = self._place if isinstance(self._place, str) else self._place.weights
        return f"TrainedRun({given!r}, step={self.step}, model={name!r})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return tuple(self._exp.selection.class_names)

    @property
    def config(self) -> Any:
        """The config of the run, a ConfigDict."""
        return self._exp.config

    @property
    def apply(self) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
        """The model as a pure function for jit, grad and vmap.

        It maps (variables, images uint8 [B, H, W, C] of the model's size) to logits [B, K]
        float32, and normalises the images itself.
        """
        return self._exp.recipe.logits_step()

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the records of metrics.jsonl, one dict each; [] of published weights."""
        if not isinstance(self._place, str):
            return []
        return records.read(Workdir(self._place).metrics)

    def predict(
        self,
        images: Picture | Iterable[Picture],
        *,
        batch_size: int = BATCH_SIZE,
        threads: int = 0,
    ) -> Predictions:
        """Returns the probabilities of each image's classes, as ``jaxcls predict`` does.

        Args:
            images: One image, or any number of them: paths; images of Pillow, which their
                EXIF turns; uint8 arrays (NumPy's, JAX's) of upright pixels, [H, W] or [H,
                W, 1] of grey or [H, W, 3] of RGB; or an array of several, [n, H, W, C].
                Sizes may differ: each image goes through the run's data.eval_ops.
            batch_size: Images that the device gets at a time.
            threads: Threads that read and decode; 0 is one a core.

        Raises `InputError`, which names the place and the reason, for an image that cannot
        be read.

        Examples:
            >>> run = jaxcls.load("runs/digits")
            >>> run.predict("seven.png").names
            ('7',)
        """
        found = self._answers(images, False, batch_size, threads)
        rows = [each.probabilities for each in found]
        names = self.class_names
        likely = np.stack(rows) if rows else np.zeros((0, len(names)), np.float32)
        return Predictions(likely, tuple(names[k] for k in likely.argmax(1)), names)

    def embed(
        self,
        images: Picture | Iterable[Picture],
        *,
        batch_size: int = BATCH_SIZE,
        threads: int = 0,
    ) -> np.ndarray:
        """Returns the features that the model's head sees, float32 [n, D].

        Args:
            images: Pictures, as of `predict`.
            batch_size: Images of a batch.
            threads: Decoding threads; 0 is the run's.

        Raises `InputError` as `predict` does.

        Examples:
            >>> jaxcls.load("runs/digits").embed(["seven.png", "two.png"]).shape
            (2, 128)
        """
        found = self._answers(images, True, batch_size, threads)
        rows = [each.embed for each in found]
        if rows:
            return np.stack(rows)
        return np.zeros((0, inference.width(self._exp, self._weights)), np.float32)

    def evaluate(self, split: str = "test", *, batch_size: int = 0) -> dict[str, Any]:
        """Returns the figures of the run on every example of a split, each counted once.

        Args:
            split: "test", "eval", "train", or a split as TFDS writes it, "train[:10%]".
            batch_size: Examples of a batch; 0 is the run's.

        Returns the values of the first line of ``jaxcls evaluate``: "split", "n", "loss",
        the metrics of the run, and with the prefix "ema_" those of its average. The dataset
        must be there. Raises `InputError` if it is not, or has no such split.
        """
        given = examples.of_run(self._exp, split)
        config = self._exp.config
        size = batch_size or config.eval.batch_size or config.batch_size
        done = assess.evaluated(
            self._exp, self._weights, given, assess.Asked(), min(size, given.n)
        )
        return {"split": given.split, "n": given.n, **done.values}

    def _answers(
        self,
        images: Picture | Iterable[Picture],
        embed: bool,
        batch_size: int,
        threads: int,
    ) -> Iterator[Prediction]:
        """Yields the prediction of each image; raises `InputError` for a bad one."""
        if batch_size < 1 or threads < 0:
            raise InputError(
                f"batch_size={batch_size} must be at least 1, such as {BATCH_SIZE}, and"
                f" threads={threads} at least 0"
            )
        if embed not in self._steps:
            self._steps[embed] = inference.make_step(self._exp, embed)
        found = inference.predict(
            self._exp,
            self._weights,
            _sources(images),
            batch_size=batch_size,
            threads=threads or self._exp.config.data.threads,
            step=self._steps[embed],
        )
        with clean.quiet():
            for i, each in enumerate(found):
                if isinstance(each, Bad):
                    place = f"images[{i}]" + (f", {each.path}" if each.path else "")
                    raise InputError(f"{place}: {each.why}")
                yield each


def _sources(images: Picture | Iterable[Picture]) -> Iterator[Source]:
    """Yields the images that a caller gave, one or many."""
    many: Any = np.asarray(images) if _is_array(images) else images
    is_one = isinstance(images, str | os.PathLike | Image.Image)
    if is_one or (_is_array(images) and many.ndim < 4):
        many = [many]
    for each in many:
        plain = os.fspath(each) if isinstance(each, os.PathLike) else each
        yield np.asarray(plain) if _is_array(plain) else plain


def _is_array(value: Any) -> bool:
    """Returns whether a value is an array of NumPy, JAX or another library."""
    return hasattr(value, "dtype") and hasattr(value, "shape")
