"""``jaxcls VERB ...`` and ``python -m jaxcls VERB ...``."""

from typing import NoReturn

from jaxcls import commands
from jaxcls.commands import cli


def main() -> NoReturn:
    """Calls a command and exits with its status; this is the console script."""
    cli.run(commands.main)


if __name__ == "__main__":
    main()
