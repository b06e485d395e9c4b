"""Which class of published weights is which class of a dataset."""

from collections import Counter
from collections.abc import Sequence

from jaxcls.data.published import imagenet_synsets
from jaxcls.errors import InputError

# Words of some of ImageNet's classes, which all lists of its names have, by their numbers.
_LANDMARKS = {
    **{0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 388: "panda"},
    **{609: "jeep", 817: "sports car", 954: "banana", 963: "pizza", 980: "volcano"},
}


def names_of(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Returns the names of the classes of weights, whose head has `count`.

    names: what the weights tell, or (): then 1,000 classes are ImageNet's synsets, and
    others are numbers.
    """
    if len(names) == count:
        return tuple(names)
    synsets = imagenet_synsets()
    return synsets if count == len(synsets) else tuple(map(str, range(count)))


def rows(
    there: Sequence[str], count: int, here: Sequence[str], place: str
) -> tuple[list[int], str]:
    """Returns (the row of the head for each class of a dataset, how they were matched).

    there: the names that the weights tell, or (). count: the classes of their head. here:
    the names of the dataset's classes. place: the weights, for messages.

    Raises `InputError` unless each class of the dataset is exactly one of the weights'.
    """
    if not count:
        raise InputError(
            f"init.weights={place} hold no head, so they tell no class; give weights of a"
            " classifier, or train with init.head='fresh'"
        )
    synsets, kinds = imagenet_synsets(), dict[str, tuple[str, ...]]()
    if len(there) == count:
        kinds["their names"] = tuple(there)
    if count == len(synsets) and (len(there) != count or _are_imagenets(there)):
        kinds["ImageNet's order of synsets"] = synsets
    if not there and len(here) == count:
        kinds["their numbers"] = tuple(map(str, range(count)))
    for how, names in kinds.items():
        counts, place_of = Counter(names), {name: k for k, name in enumerate(names)}
        found = [place_of[name] for name in here if counts[name] == 1]
        if names == tuple(here):  # Two of ImageNet's words are of two classes each.
            found = list(range(count))
        if len(found) == len(here):
            return found, f"classes: {len(found)} of the {count} there, by {how}"
    known = {name for names in kinds.values() for name in names}
    unknown = next((name for name in here if name not in known), here[0])
    others = f"such as {there[0]!r}" if there else "without names"
    raise InputError(
        f"init.weights={place} have {count} classes {others}, and {unknown!r} of the data"
        " is not exactly one of them; name them in the data's words, in config.json beside"
        ' the weights: {"architecture": "resnet50", "label_names": ["cat", "dog"]}'
    )


def _are_imagenets(names: Sequence[str]) -> bool:
    """Returns whether 1,000 names are words for ImageNet's classes, in its order."""
    words = {k: names[k].lower().replace("_", " ") for k in _LANDMARKS}
    return any(word in words[k] for k, word in _LANDMARKS.items())
