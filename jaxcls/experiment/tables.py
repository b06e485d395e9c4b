"""The tables that names of a config are looked up in: ours, and entries of plug-ins."""

from collections.abc import Mapping

from jaxcls import augment, models
from jaxcls.config.calls import Table
from jaxcls.config.plugins import Plugins
from jaxcls.errors import InputError
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
    tables = dict(OURS)
    for table, entries in plugins.tables.items():
        for name in entries.keys() & OURS[table].keys():
            raise InputError(
                f"plugins: {name!r} is in {table} already; give it another name, such as"
                f" 'my_{name}'"
            )
        tables[table] = {**OURS[table], **entries}
    return tables
