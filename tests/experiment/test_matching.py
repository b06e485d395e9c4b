"""Which row of a published head is which class: by names, by ImageNet's order, or none."""

import pytest

from jaxcls.data.published import imagenet_synsets
from jaxcls.errors import InputError
from jaxcls.experiment import matching

SYNSETS = imagenet_synsets()
WORDS = ["tench", "goldfish", "crane", *(f"word {k}" for k in range(3, 517)), "crane"]
WORDS += [f"word {k}" for k in range(518, 1000)]  # Two are of one word, as ImageNet has.

OTHERS = tuple(f"plant {k}" for k in range(1000))


def rows(there, count, here):
    return matching.rows(there, count, here, "w.pth")


def test_the_synsets_are_those_of_ilsvrc2012_in_order():
    assert len(set(SYNSETS)) == 1000
    assert list(SYNSETS) == sorted(SYNSETS)
    # The first, a few that papers name by their numbers, and the last.
    known = {0: "n01440764", 207: "n02099601", 281: "n02123045", 999: "n15075141"}
    assert {k: SYNSETS[k] for k in known} == known


@pytest.mark.parametrize(
    ("there", "count", "here", "found", "how"),
    [
        (
            ("c", "a", "b"),
            3,
            ("a", "b", "c"),
            [1, 2, 0],
            "3 of the 3 there, by their names",
        ),
        (("c", "a", "b"), 3, ("b",), [2], "1 of the 3 there, by their names"),
        ((), 1000, SYNSETS[5:8], [5, 6, 7], "by ImageNet's order of synsets"),
        ((), 1000, SYNSETS[::-1], [*range(999, -1, -1)], "ImageNet's order of synsets"),
        (WORDS, 1000, SYNSETS, [*range(1000)], "by ImageNet's order of synsets"),
        (WORDS, 1000, tuple(WORDS), [*range(1000)], "by their names"),
        (WORDS, 1000, ("goldfish",), [1], "1 of the 1000 there, by their names"),
        ((), 4, ("0", "1", "2", "3"), [0, 1, 2, 3], "by their numbers"),
    ],
)
def test_a_class_is_matched_and_it_is_said_how(there, count, here, found, how):
    chosen, said = rows(there, count, here)
    assert chosen == found
    assert said.startswith("classes: ")
    assert said.endswith(how)


@pytest.mark.parametrize(
    ("there", "count", "here", "why"),
    [
        ((), 10, ("0", "1"), "10 classes without names, and '0' of the data is not"),
        ((), 10, ("cat", "dog"), "in config.json beside the weights: {\"architecture\":"),
        ((), 1000, ("n01440764", "cat"), "and 'cat' of the data is not exactly one"),
        (("cat", "dog"), 2, ("cat", "fox"), "2 classes such as 'cat', and 'fox' of"),
        (WORDS, 1000, ("crane",), "and 'crane' of the data is not exactly one of them"),
        (OTHERS, 1000, SYNSETS, "1000 classes such as 'plant 0', and 'n01440764' of the"),
        (("cat",), 2, ("cat",), "2 classes such as 'cat', and 'cat' of the data"),
        ((), 0, ("cat",), "w.pth hold no head, so they tell no class"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused(there, count, here, why):
    with pytest.raises(InputError) as refused:
        rows(there, count, here)
    assert why in str(refused.value)


def test_classes_have_names_numbers_or_synsets():
    assert matching.names_of(("a", "b"), 2) == ("a", "b")
    assert matching.names_of((), 3) == ("0", "1", "2")
    assert matching.names_of((), 1000) == SYNSETS
