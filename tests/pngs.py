"""Digits' test images as files, FOLDER/7/0012.png: ``python -m tests.pngs FOLDER``."""

import pathlib
import sys

import numpy as np

from jaxcls.data import sources


def main(folder: str, data_dir: str = "") -> None:
    """Write each PNG of the prepared dataset's test split below the name of its class."""
    dataset = sources.Dataset("digits", data_dir)
    source = dataset.source("test", "data.test")
    for number, (data, label) in enumerate(source.read(np.arange(len(source)))):
        file = pathlib.Path(folder) / dataset.facts.class_names[label] / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


if __name__ == "__main__":
    main(*sys.argv[1:])
