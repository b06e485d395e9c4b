"""Finds the folders that are splits, by their names."""

import re
from collections import defaultdict
from collections.abc import Collection

from jaxcls.errors import InputError, shown

SPLITS = ("train", "val", "valid", "validation", "test")
# A word of a folder's name -> its split.
_WORDS = {
    **{split: split for split in SPLITS},
    **{"training": "train", "testing": "test", "dev": "val", "eval": "val"},
}
# Words that tell no folder from another: training_set, train_images, TestData.
_FILLERS = ("set", "dataset", "data", "images", "image", "imgs", "img", "split")
_LONGEST_FIRST = sorted(_WORDS, key=len, reverse=True)
_WORD = re.compile(rf"({'|'.join(_LONGEST_FIRST)})({'|'.join(_FILLERS)})?(\d*)")


def of_folders(names: Collection[str]) -> dict[str, str]:
    """Returns folder -> split of the folders that are named as splits of one source.

    They are one for training and others, named alike but for the split: train and val,
    training_set and test_set, seg_train and seg_test. Raises `InputError` for two folders
    of one split.
    """
    alike: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name in sorted(names):
        if found := read(name):
            split, rest = found
            alike[rest][name] = split
    for _, folders in sorted(alike.items()):
        given = set(folders.values())
        if "train" in given and len(given) > 1:
            check(folders)
            return folders
    return {}


def read(name: str) -> tuple[str, str] | None:
    """Returns the split that a folder's name holds, and its other words; or None."""
    split, rest = "", []
    for word in re.split(r"[\W_]+", name.lower()):
        match = _WORD.fullmatch(word)
        if match and not split:
            split, number = _WORDS[match[1]], match[3]
            rest += [number] if number else []
        elif word and word not in _FILLERS:
            rest.append(word)
    return (split, " ".join(rest)) if split else None


def check(folders: dict[str, str]) -> None:
    """Raises `InputError` if two folders are one split."""
    first: dict[str, str] = {}
    for name, split in folders.items():
        if split in first:
            raise InputError(
                f"the folders {shown(first[split])} and {shown(name)} are both split"
                f" {split}; put them into one, or take one away"
            )
        first[split] = name
