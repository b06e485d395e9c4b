"""``jaxcls probe --config=configs/finetune.py``: fit the head of a model at once."""

from collections.abc import Sequence

from jaxcls.commands import cli, train

ABOUT = """Fit the head of a model on the features of every image, which are computed once:
logistic regression for each of several penalties, of which data.eval chooses one. The
result is a run. It is jaxcls train with the settings of a probe."""
PENALTIES = "1e-1, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6, 1e-7"


def parser() -> cli.Parser:
    """Returns the parser of the command's flags: those of train."""
    return train.parser("probe", ABOUT)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    return train.main(argv, parser(), PENALTIES)
