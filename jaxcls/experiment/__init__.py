"""A config becomes an experiment: `build` is the only way from one to the other.

An `Experiment` holds the plan, the data, the recipe and the compiled programs of a run.
"""

from jaxcls.experiment.building import Experiment, build

__all__ = ["Experiment", "build"]
