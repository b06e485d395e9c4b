"""The tables of a recipe, in which names of a config are looked up."""

from collections.abc import Mapping

from jaxcls import augment, models
from jaxcls.config.calls import Table
from jaxcls.config.plugins import Plugins
from jaxcls.learning import losses, metrics, optimizers, schedules, wrappers

OURS: Mapping[str, Table] = {
    "MODELS": models.MODELS,
    "OPTIMIZERS": optimizers.OPTIMIZERS,
    "WRAPPERS": wrappers.WRAPPERS,
    "LOSSES": losses.LOSSES,
    "METRICS": metrics.METRICS,
    "SCHEDULES": schedules.SCHEDULES,
    "AUGMENTATIONS": augment.AUGMENTATIONS,
    "MIXES": augment.MIXES,
    "NORMALIZATIONS": augment.NORMALIZATIONS,
}


def merged(plugins: Plugins) -> dict[str, Table]:
    """Returns our tables with the entries of plug-ins.

    Raises `InputError` for a name that ours has already.
    """
    return {table: plugins.added_to(table, ours) for table, ours in OURS.items()}
