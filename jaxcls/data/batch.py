"""A batch: the input of every stage between the files and the metrics."""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """A batch of examples, one array per field; () marks an absent field.

    NumPy arrays on a host hold the host's rows [b, ...]. Arrays on the mesh hold all rows
    [B, ...]. For jit, () is an empty tree, so it is no argument.

    image: uint8 [B, H, W, C].
    label: int32 [B], in the model's class numbers.
    index: int32 [B], the place of the example among the used examples of its split.
    epoch: int32 [B], in training: the epoch of the example.
    mask: bool [B], in evaluation: False for padding rows.
    asked: bool [devices], with several processes: whether the process of a device asked to
    stop.
    """

    image: Any = ()
    label: Any = ()
    index: Any = ()
    epoch: Any = ()
    mask: Any = ()
    asked: Any = ()
