"""What is said of data before anyone trains on them, counted by hand."""

import hashlib
import os

import numpy as np

from jaxcls.data.importers.findings import Kept, findings


def kept(*rows):
    """Rows of (name, label, content)."""
    names = np.array([os.fsencode(name) for name, _, _ in rows])
    labels = np.array([label for _, label, _ in rows], np.int32)
    digests = [hashlib.sha256(content.encode()).digest()[:8] for _, _, content in rows]
    hashes = np.array([int.from_bytes(d, "big") for d in digests], "u8")
    return Kept(names, labels, hashes, np.zeros(len(rows)))


def many(*counts, start=0):
    """That many images of each class, all different."""
    labels = np.repeat(np.arange(len(counts)), counts).tolist()
    return kept(*((f"{k}.png", label, f"{start + k}") for k, label in enumerate(labels)))


def test_good_data_need_no_word():
    assert findings(("a", "b"), {"train": many(9, 1), "val": many(2, 2, start=99)}) == []


def test_one_class_is_said():
    assert findings(("cats",), {"train": many(3)}) == [
        "only one class, cats: there is nothing to tell apart"
    ]


def test_classes_that_differ_in_capitals_are_said():
    names = ("CAT", "Cat", "STRASSE", "cat", "dog", "straße")
    assert findings(names, {"train": many(1, 1, 1, 1, 1, 1)}) == [
        "classes CAT and Cat and cat differ in capitals only; if they are one, give them"
        " one name",
        "classes STRASSE and straße differ in capitals only; if they are one, give them one"
        " name",
    ]
    assert findings(("cat", "cats"), {"train": many(1, 1)}) == []


def test_classes_without_an_image_are_named_by_split():
    splits = {"train": many(0, 4), "val": many(1, 0, start=9)}
    assert findings(("a", "b"), splits) == [
        "train has no image of a",
        "val has no image of b",
    ]
    names = tuple(f"c{k}" for k in range(2000))
    (line,) = findings(names, {"train": many(1)})
    assert line == "train has no image of c1, c2, c3 and 1,996 more classes"


def test_what_a_centre_crop_leaves_out_is_said_by_class():
    """Of 200 x 100 pixels half, of 4:3 a quarter."""
    train = many(1, 2)._replace(outside=np.array([0.5, 0.25, 0.0]))
    val = many(0, 1, start=9)._replace(outside=np.array([0.25]))
    *_, line = findings(("dog", "cat"), {"train": train, "val": val})
    assert line == (
        "a centre crop leaves out 25% of an image's pixels (17% of cat's, 50% of dog's);"
        " 'decode | letterbox(224)' keeps all"
    )
    one = many(2)._replace(outside=np.array([0.3, 0.2]))
    (_, line) = findings(("dog",), {"train": one})
    assert line.startswith("a centre crop leaves out 25% of an image's pixels; 'decode")
    square = many(2, 2)._replace(outside=np.array([0.3, 0.09, 0.0, 0.0]))
    assert findings(("dog", "cat"), {"train": square}) == []


def test_imbalance_is_said_from_ten_times():
    names = ("a", "b", "c")
    assert findings(names, {"train": many(19, 2, 5)}) == []
    assert findings(names, {"train": many(20, 2, 5)}) == [
        "train is unbalanced: 20 of a, 2 of b; see data.balance"
    ]
    assert findings(names, {"train": many(0, 1000, 1)})[1] == (
        "train is unbalanced: 1,000 of b, 1 of c; see data.balance"
    )


def test_copies_within_a_split_are_counted():
    rows = [("1", 0, "x"), ("2", 1, "y"), ("3", 0, "x"), ("4", 1, "z"), ("5", 0, "x")]
    assert findings(("a", "b"), {"train": kept(*rows)}) == [
        "train holds 2 images twice, such as 1 and 3"
    ]


def test_one_image_in_two_classes_is_a_contradiction():
    rows = [("1", 0, "x"), ("2", 1, "x"), ("3", 1, "y"), ("4", 1, "y")]
    lines = findings(("a", "b"), {"train": kept(*rows)})
    assert lines[0].startswith("train holds 2 images twice, such as ")
    assert lines[1:] == ["train has 1 images in two classes, such as 1 and 2"]


def test_images_in_two_splits_are_counted_once():
    train = kept(("t/1", 0, "x"), ("t/2", 1, "y"), ("t/3", 0, "z"))
    val = kept(("v/1", 0, "q"), ("v/2", 0, "x"), ("v/3", 1, "x"), ("v/4", 1, "z"))
    test = kept(("e/1", 0, "0"), ("e/2", 1, "1"))
    lines = findings(("a", "b"), {"test": test, "train": train, "val": val})
    (line,) = [line for line in lines if " in val" in line]
    assert line.startswith("2 images are in train and in val, such as t/")
    assert line.endswith(": scores on val will be too good")
    assert not any("test" in line for line in lines)


def test_the_example_of_a_note_does_not_depend_on_the_hashes():
    for start in range(20):
        text = [f"{start + k}" for k in range(8)]
        rows = [(f"{k}", k % 3, text[k // 2]) for k in range(16)]
        train = kept(*rows)
        val = kept(*((f"v{k}", k % 3, text[7 - k]) for k in range(8)))
        lines = findings(("a", "b", "c"), {"train": train, "val": val})
        assert lines == [
            "train holds 8 images twice, such as 0 and 1",
            "train has 8 images in two classes, such as 0 and 1",
            "8 images are in train and in val, such as 0 and v7: scores on val will be too"
            " good",
        ]


def test_odd_names_are_shown_on_one_line():
    rows = [(os.fsdecode(b"\xff\n.png"), 0, "x"), ("b.png", 1, "x"), ("ü.png", 1, "y")]
    for line in findings(("a", "b"), {"train": kept(*rows)}):
        assert line.isprintable()
    assert "ü" in findings(("a",), {"train": kept(rows[2], ("c", 0, "y"))})[1]
