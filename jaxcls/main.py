"""``python -m jaxcls.main --config=configs/digits.py``: the same as ``jaxcls train``."""

from jaxcls.commands import cli, train

if __name__ == "__main__":
    cli.run(train.main)
