"""``jaxcls VERB ...`` and ``python -m jaxcls VERB ...``."""

from typing import NoReturn

from jaxcls import commands
from jaxcls.commands import cli


def main() -> NoReturn:
    """The console script: calls a command and leaves with its status."""
    cli.run(commands.main)


if __name__ == "__main__":
    main()
