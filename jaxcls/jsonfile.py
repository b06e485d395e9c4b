"""Files of JSON, and what JSON cannot say."""

import json
import math
import pathlib
from typing import Any

from jaxcls import atomic
from jaxcls.errors import InputError, first_line


def read(file: pathlib.Path) -> Any:
    """What a file says, None where there is no such file; raises `InputError`."""
    try:
        return json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {first_line(error)}") from None


def write(file: pathlib.Path, value: Any) -> None:
    """Make a value all that a file says, atomically; raises `InputError`."""
    atomic.write(file, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """A value as JSON has it: what is not finite is None, tuples are lists."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
