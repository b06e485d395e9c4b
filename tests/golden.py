"""Rewrite tests/golden from the configs: ``python -m tests.golden``."""

import pathlib

from jaxcls import config

HERE = pathlib.Path(__file__).resolve().parent

if __name__ == "__main__":
    for path in sorted((HERE.parent / "configs").glob("[!_]*.py")):
        golden = HERE / "golden" / f"{path.stem}.txt"
        golden.write_text(config.to_text(config.load(str(path))))
