"""Models of plug-ins: any Flax module of images and `train` as a `Classifier`."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.errors import InputError
from jaxcls.models import naming
from jaxcls.models.layers import BatchNorm, Output
from jaxcls.models.naming import Naming

_WANTED = "a flax.linen.Module whose __call__(self, images, train) returns logits [B, K]"


class Foreign:
    """A user's module with the methods of a `Classifier`, of which it need have none.

    Its `__call__` returns logits [B, K], or an `Output` of logits and embed. `groups`,
    `namings` and `from_images` are optional. It keeps its arrays in "params" and
    "batch_stats".
    """

    def __init__(self, module: Any, where: str, num_classes: int) -> None:
        """Raises `InputError` for what is no such module; where: "model.name='mine'"."""
        self._module, self._where, self._classes = module, where, num_classes
        if not isinstance(module, nn.Module):
            raise InputError(
                f"{where} makes {type(module).__name__}, and must make {_WANTED}"
            )
        taken = inspect.signature(type(module).__call__)
        try:
            taken.bind(module, "images", "train")
        except TypeError:
            names = [*taken.parameters][1:]
            raise InputError(
                f"{where}: its __call__ takes ({', '.join(names)}), and must take"
                " (images, train)"
            ) from None

    def init(self, rngs: Any, images: jax.Array, train: bool) -> Any:
        """Returns the variables, as Flax's `init` does."""
        out, made = self._module.init_with_output(rngs, images, train)
        self._output(out)
        if "params" not in made:
            raise InputError(f"{self._where} has no params, so there is nothing to train")
        if others := sorted(made.keys() - {"params", "batch_stats"}):
            raise InputError(
                f"{self._where} makes the collection {others[0]!r}; a model keeps its"
                " arrays in 'params' and 'batch_stats'"
            )
        return made

    def apply(self, variables: Any, images: jax.Array, train: bool, **more: Any) -> Any:
        """Returns the `Output`, and with `mutable` the updated collections."""
        out = self._module.apply(variables, images, train, **more)
        if "mutable" in more:
            return self._output(out[0]), out[1]
        return self._output(out)

    def _output(self, out: Any) -> Output:
        """Returns an `Output`; its embed is () if the module gives none."""
        logits: Any = getattr(out, "logits", out)
        embed: Any = getattr(out, "embed", ())
        shape = getattr(logits, "shape", None)
        if not shape or len(shape) != 2 or shape[1] != self._classes:
            raise InputError(
                f"{self._where} returns {_shown(out)}, and must return logits"
                f" [B, {self._classes}], of num_classes"
            )
        return Output(jnp.asarray(logits, jnp.float32), embed)

    def has_groups(self) -> bool:
        """Returns whether the module tells the order of its layers."""
        return hasattr(self._module, "groups")

    def groups(self) -> list[tuple[str, ...]]:
        """Returns the layers by depth; raises `InputError` if the module does not tell."""
        if not self.has_groups():
            raise InputError(
                f"{self._where} has no groups(), its layers by depth, input first, such as"
                " [('stem',), ('head',)]; optim.layer_decay, optim.head_lr,"
                " optim.head_first and model.remat need it"
            )
        found: list[tuple[str, ...]] = self._module.groups()
        return found

    @property
    def from_images(self) -> Callable[[np.ndarray], Mapping[str, np.ndarray]] | None:
        """The module's function from training images to params by path, if it has one."""
        return getattr(self._module, "from_images", None)

    def namings(self) -> dict[str, Naming]:
        """Returns the module's own names elsewhere; {} if it has none."""
        return dict(self._module.namings()) if hasattr(self._module, "namings") else {}


def _shown(out: Any) -> str:
    """Returns an output in words."""
    if hasattr(out, "shape"):
        return f"an array of {list(out.shape)}"
    return type(out).__name__


def other_statistics(classifier: Any, like: Mapping[str, Any], images: Any) -> list[str]:
    """Returns the paths of batch_stats that no `layers.BatchNorm` keeps.

    like, images: The variables and a batch of images, as shapes.
    """
    kept = set()

    def note(call: Any, args: Any, options: Any, context: Any) -> Any:
        if isinstance(context.module, BatchNorm):
            kept.add("/".join(context.module.path))
        return call(*args, **options)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda v, x: classifier.apply(v, x, False), like, images)
    paths = sorted(naming.flatten(like["batch_stats"]))
    return [path for path in paths if path.rpartition("/")[0] not in kept]


def names_of(classifier: Any, like: Mapping[str, Any]) -> dict[str, Naming]:
    """Returns the namings of a model; of one that has none, its own paths with dots.

    like: The model's {"params", "batch_stats"}, as shapes.
    """
    found: dict[str, Naming] = classifier.namings()
    return found or {"pytorch": naming.of_paths(like)}
