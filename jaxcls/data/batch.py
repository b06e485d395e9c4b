"""A batch: what every stage between the files and the metrics hands to the next."""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Examples, an array for each field; () is a field that the batch does not have.

    NumPy arrays on a host have its rows [b, ...]; arrays on the mesh have all [B, ...].
    For jit, () is an empty tree: no argument.

    image: uint8 [B, H, W, C]. label: int32 [B], as the model counts classes.
    index: int32 [B], the place of the example among the used examples of its split.
    epoch: int32 [B], of training: which showing of the example this is.
    mask: bool [B], of evaluation: False where a row only fills the batch.
    asked: bool [devices], of several processes: whether the process of a device asked to
    stop.
    """

    image: Any = ()
    label: Any = ()
    index: Any = ()
    epoch: Any = ()
    mask: Any = ()
    asked: Any = ()
