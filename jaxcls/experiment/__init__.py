"""An experiment, made from a config by `build` alone.

An `Experiment` holds the plan, the data, the recipe and the compiled programs of a run.
"""

from jaxcls.experiment.building import Experiment, build

__all__ = ["Experiment", "build"]
