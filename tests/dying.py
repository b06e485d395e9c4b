"""An experiment that dies between two steps, as a killed process does."""

from jaxcls import experiment


class Crash(Exception):
    """Stands for a process that dies between two steps."""


class Dying(experiment.Experiment):
    """An experiment whose input dies before the batch of step `at`."""

    at = 10**9

    def train_batches(self, start=0):
        for step, batch in enumerate(super().train_batches(start), start):
            if step == self.at:
                raise Crash
            yield batch
