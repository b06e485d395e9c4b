"""Splits, classes and labels from paths and tables, by hand."""

import collections
import hashlib
import json
import os
import re
import shutil
import tarfile
import unicodedata

import pytest

from jaxcls.data.importers.folders import folders
from jaxcls.data.importers.parts import name_hash
from jaxcls.errors import InputError
from tests.images import write


def read(root, val_fraction=0.0, test_fraction=0.0):
    """ImageSource, and {split: {name: (class name, its file's bytes)}}."""
    found = folders(root, root.parent, val_fraction, test_fraction)
    table = {}
    for split, listing in found.splits.items():
        labels = [found.class_names[label] for label in listing.labels]
        rows = zip(
            listing.names, labels, map(listing.read, range(len(labels))), strict=True
        )
        table[split] = {os.fsdecode(name): (label, data) for name, label, data in rows}
    return found, table


def made(*names):
    return {name: name.encode("utf-8", "surrogateescape") for name in names}


def refused(root, said, *fractions):
    with pytest.raises(InputError, match=said) as caught:
        folders(root, root.parent, *(fractions or (0.0,)))
    assert "\n" not in str(caught.value)


@pytest.fixture
def source(tmp_path):
    """``source("a/1.png", ...)`` -> a folder of such files, each with its name in it."""
    return lambda *names, **files: write(tmp_path / "some", {**made(*names), **files})


@pytest.mark.parametrize("second", ["val", "valid", "validation", "test"])
def test_splits_are_the_first_folder_and_classes_the_second(source, second):
    one, two, three = "train/a/1.png", "train/b/deep/er/2.JPG", f"{second}/a/1.png"
    found, table = read(source(one, two, three))
    assert found.class_names == ("a", "b")
    assert table == {
        "train": {one: ("a", one.encode()), two: ("b", two.encode())},
        second: {three: ("a", three.encode())},
    }
    assert (found.kind, found.channels) == ("class folders", 3)
    assert (found.rejected, found.notes) == ([], [])


@pytest.mark.parametrize(
    ("train", "second", "split"),
    [
        ("training_set", "test_set", "test"),
        ("Train", "Test", "test"),
        ("train_images", "dev_images", "val"),
        ("Training", "Testing", "test"),
        ("train2017", "val2017", "val"),
        ("flowers-train", "flowers-valid", "valid"),
        ("trainset", "validationset", "validation"),
        ("seg_train/seg_train", "seg_test/seg_test", "test"),
    ],
)
def test_folders_named_like_splits_are_splits(source, train, second, split):
    names = [f"{train}/a/1.png", f"{train}/b/2.png", f"{second}/a/3.png"]
    found, table = read(source(*names, f"{train}/b/deep/4.png"))
    assert found.class_names == ("a", "b")
    assert {name: label for name, (label, _) in table["train"].items()} == {
        names[0]: "a", names[1]: "b", f"{train}/b/deep/4.png": "b",
    }  # fmt: skip
    assert [*table[split]] == names[2:]
    one, two = sorted([f"{train.split('/')[0]}=train", f"{second.split('/')[0]}={split}"])
    assert found.notes == [f"folders taken as splits: {one}, {two}"]


@pytest.mark.parametrize(
    "names", [("train", "bus", "car"), ("train station", "bus station"), ("testing", "a")]
)
def test_a_class_may_be_called_like_a_split(source, names):
    found, table = read(source(*(f"{name}/1.png" for name in names)))
    assert found.class_names == tuple(sorted(names))
    assert [*table] == ["train"]


def test_odd_names_are_classes_and_files(source):
    odd = ["a b", "c,d", 'e"f', "naïve ☃", "-x", "%41", "train"]
    names = [*(f"{name}/{name} 1.png" for name in odd), os.fsdecode(b"a b/\xff\n.png")]
    found, table = read(source(*names))
    assert found.class_names == tuple(sorted(odd))
    labels = {name: label for name, (label, _) in table["train"].items()}
    assert labels == {name: name.split("/")[0] for name in names}


def test_classes_that_are_numbers_are_in_their_order(source):
    found, _ = read(source(*(f"{k}/1.png" for k in (10, 2, 1, 33, 0))))
    assert found.class_names == ("0", "1", "2", "10", "33")


@pytest.mark.parametrize(
    "ordered",
    [
        ("0.0", "2.0", "10.0"),
        ("-10", "-2", "0", "+1", "3"),
        ("-1.5", "-1.25", "0.5", "2", "1e1", "2E+1"),
        ("01", "1", "1.0", "2."),
        ("\u0662", "\u0661\u0660"),
        ("10", "2", "a"),
        ("10", "2", "nan"),
        ("1.2.10", "1.2.9"),
        ("10 a", "9 a"),
    ],
)
def test_numbers_are_in_their_order_and_other_names_in_that_of_text(tmp_path, ordered):
    lines = [f"{k}.png,{name}\n" for k, name in enumerate(ordered)]
    names = [f"{k}.png" for k in range(len(ordered))]
    root = table(tmp_path, "path,label\n" + "".join(lines[::-1]), *names)
    assert read(root)[0].class_names == ordered


@pytest.mark.parametrize("wrapper", ["flowers", "a/b", "flowers-1.0 (copy)"])
@pytest.mark.parametrize(
    "below", ["train/a/1.png train/b/2.png val/a/3.png", "a/1.png b/2.png"]
)
def test_one_folder_around_all_is_not_seen(tmp_path, wrapper, below):
    plain = write(tmp_path / "plain", made(*below.split()))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(plain, wrapper)
    with_readme = write(tmp_path / "w" / wrapper, {**made(*below.split()), "README": b""})
    expected = read(plain)
    assert read(tmp_path / "a.tar")[1] == expected[1]
    write(tmp_path / "w", {"LICENSE": b""})
    found, rows = read(tmp_path / "w")
    assert rows == expected[1]
    assert with_readme.is_dir()
    assert found.left_out == {
        "beside the one folder of images": ["LICENSE"],
        "not named as an image": ["README"],
    }


def test_a_wrapper_is_no_class_and_a_class_is_no_wrapper(source):
    root = source("cats/1.png", "cats/2.png")
    assert read(root)[0].class_names == ("cats",)
    write(root, made("cats/sub/3.png"))
    (root / "dogs").mkdir()
    found, table = read(root)
    assert found.class_names == ("cats",)
    assert len(table["train"]) == 3


EMPTY = "a folder without an image"


def test_a_folder_without_an_image_is_no_class(source):
    root = source("train/b/1.png", "val/b/2.png", "val/d/3.png", "train/e/notes.txt")
    for name in ("train/a", "val/a", "train/d", "other/c"):
        (root / name).mkdir(parents=True)
    found, table = read(root)
    assert found.class_names == ("b", "d")
    assert table["train"]["train/b/1.png"][0] == "b"
    assert found.left_out == {
        "not named as an image": ["train/e/notes.txt"],
        EMPTY: ["train/a/", "train/e/", "val/a/"],
    }


def test_an_empty_folder_on_top_is_neither_a_class_nor_beside_a_wrapper(source):
    root = source("cats/1.png", "dogs/2.png")
    (root / "birds").mkdir()
    found, _ = read(root)
    assert (found.class_names, found.left_out) == (("cats", "dogs"), {EMPTY: ["birds/"]})
    wrapped = write(root.parent / "outer", made("pets/cats/1.png", "pets/dogs/2.png"))
    (wrapped / "videos").mkdir()
    (wrapped / "docs").mkdir()
    (wrapped / "docs" / "a.txt").touch()
    assert read(wrapped)[0].class_names == ("cats", "dogs")


LITTER = [
    "cats/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "lost+found/2.png", "@eaDir/3.png",
    "$RECYCLE.BIN/S-1/4.png", "System Volume Information/5.png", "cats/Desktop.ini",
    "dogs/DESKTOP.INI", "dogs/THUMBS.DB", ".thumbnails/6.png", "#recycle/cats/7.png",
    "cats/._1.png",
]  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
def test_what_a_system_leaves_is_neither_class_nor_image(source, tmp_path, packed):
    root = source("cats/1.png", "dogs/1.png", *LITTER)
    if packed:
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.add(root, ".")
        root = tmp_path / "a.tar"
    found, table = read(root)
    assert found.class_names == ("cats", "dogs")
    assert [*table["train"]] == ["cats/1.png", "dogs/1.png"]
    (paths,) = found.left_out.values()
    assert [*found.left_out] == ["hidden, or of a system"]
    assert sorted(paths) == sorted(
        ["cats/@eaDir/", "lost+found/", "@eaDir/", "$RECYCLE.BIN/", ".thumbnails/",
         "System Volume Information/", "cats/Desktop.ini", "dogs/DESKTOP.INI",
         "dogs/THUMBS.DB", "#recycle/", "cats/._1.png"]
    )  # fmt: skip
    assert (found.rejected, found.notes) == ([], [])


def test_what_is_in_no_class_is_said(source):
    names = ["train/a/1.png", "train/2.JPG", "3.png", "extra/a/4.png", "README.md"]
    litter = ["train/.DS_Store", "__MACOSX/train/a/._1.png"]
    root = source(*names, *litter)
    (root / "train" / "b").mkdir()
    found, table = read(root)
    assert list(table["train"]) == ["train/a/1.png"]
    reason = "in no class folder"
    assert sorted(found.rejected) == sorted((name, reason) for name in names[1:4])
    assert found.left_out == {
        "hidden, or of a system": ["__MACOSX/", "train/.DS_Store"],
        "not named as an image": ["README.md"],
        EMPTY: ["train/b/"],
    }


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], r"some holds no file; give a folder of class folders"),
        ([".DS_Store"], r"some holds no file; give a folder"),
        (["notes.txt"], r"holds no image by class folders; it must hold train/<class>"),
        (["train/1.png", "test/2.png"], r"folders test, train look like splits, not"),
        (["1.png"], r"no image by class folders \(refused: 1.png, in no class folder\)"),
        (
            ["train_images/1.png", "test_images/2.png", "train.csv"],
            r"test_images, train_images look like splits, .* or give a labels.csv",
        ),
        (
            ["x/train/1.png", "x/test/2.png", "x/cat/3.png"],
            r"folders test, train look like",
        ),
        (["TrainSet/1.png", "TestSet/2.png"], r"folders TestSet, TrainSet look like"),
        (
            ["train/a/1.png", "Train/b/1.png", "val/a/1.png"],
            r"folders Train and train are both split train; put them into one",
        ),
        (["test/a/1.png", "val/a/2.png"], r"folders test, val look like splits, not"),
    ],
)
def test_a_folder_without_classes_is_refused(source, names, said):
    root = source(*names)
    root.mkdir(exist_ok=True)
    refused(root, said)


def test_the_hash_of_a_name_is_uniform_and_its_first_values_are_for_all_time():
    hashes = [name_hash(b"%d" % k) for k in range(10_000)]
    assert len(set(hashes)) == 10_000
    buckets = collections.Counter(h >> 60 for h in hashes)
    assert all(abs(buckets[k] - 625) < 125 for k in range(16))
    parameters = {"digest_size": 8, "person": b"jaxcls val"}
    expected = hashlib.blake2b(b"a/1.png", **parameters).digest()
    assert name_hash(b"a/1.png", b"jaxcls val").to_bytes(8, "big") == expected


def by_class(rows):
    return collections.Counter(label for label, _ in rows.values())


@pytest.mark.parametrize("counts", [[8] * 10, [1, 2, 3, 7, 13, 40, 101]])
def test_fractions_take_their_share_of_each_class_by_the_lowest_hashes(source, counts):
    names = [f"c{c}/{k}.png" for c, n in enumerate(counts) for k in range(n)]
    root = source(*names)
    _, parts = read(root, 0.2, 0.1)
    assert [*parts] == ["train", "val", "test"]
    assert sorted(name for rows in parts.values() for name in rows) == sorted(names)
    val, test = by_class(parts["val"]), by_class(parts["test"])
    for c, n in enumerate(counts):
        asked_test, asked_val = max(1, round(0.1 * n)), max(1, round(0.2 * n))
        assert test[f"c{c}"] == min(asked_test, n - 1)
        assert val[f"c{c}"] == min(asked_val, n - 1 - test[f"c{c}"])
    _, alone = read(root, 0.2)
    assert by_class(alone["val"]) == {
        f"c{c}": max(1, round(0.2 * n)) for c, n in enumerate(counts) if n > 1
    }
    assert [*read(root, 0.0, 0.1)[1]["test"]] == [*parts["test"]]
    largest = [name for name in names if name.startswith(f"c{len(counts) - 1}/")]
    lowest = sorted(largest, key=lambda name: name_hash(name.encode(), b"jaxcls val"))
    in_val = {name for name in alone["val"] if name in largest}
    assert in_val == {*lowest[: len(in_val)]}


def test_new_files_move_few_and_none_of_another_class(source):
    names = [f"{'ab'[k % 2]}/{k}.png" for k in range(600)]
    root = source(*names)
    _, before = read(root, 0.25)
    write(root, made(*(f"c/{k}.png" for k in range(300))))
    _, after = read(root, 0.25)
    for split in ("train", "val"):
        assert set(before[split]) == set(names) & set(after[split])
    write(root, made(*(f"a/new {k}.png" for k in range(30))))
    _, grown = read(root, 0.25)
    moved = {n for n in after["train"].keys() & grown["val"] if "new" not in n}
    moved |= after["val"].keys() & grown["train"].keys()
    assert len(moved) <= 8
    assert all(name.startswith("a/") for name in moved)
    _, more = read(root, 0.5)
    assert set(grown["val"]) < set(more["val"])


def test_the_form_of_a_name_does_not_choose_its_split(tmp_path):
    names = [f"é/ü {k}.png" for k in range(40)]
    for form in ("NFC", "NFD"):
        write(tmp_path / form, made(*(unicodedata.normalize(form, n) for n in names)))
    one, other = (
        {
            unicodedata.normalize("NFC", name)
            for name in read(tmp_path / form, 0.3)[1]["val"]
        }
        for form in ("NFC", "NFD")
    )
    assert one == other
    assert len(one) == 12


def test_fractions_are_of_train_alone_and_leave_no_split_empty(source):
    root = source("a/1.png", "b/1.png")
    refused(root, "--val_fraction=0.2 leaves split val empty: train keeps a file", 0.2)
    refused(root, "--test_fraction=0.2 leaves split test empty: train", 0.0, 0.2)
    write(root, made("a/2.png"))
    refused(root, "--val_fraction=0.2 --test_fraction=0.2 leaves split val e", 0.2, 0.2)
    shutil.rmtree(root)
    root = source("train/a/1.png", "test/a/2.png")
    refused(root, "own train, test; leave it out, and use data.eval='train", 0.2)
    refused(root, "--test_fraction=0.1: the source has its own train, test", 0.0, 0.1)


def forms(text):
    return [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]


def test_one_name_in_two_forms_is_one_class(source):
    (one, other), (word, _) = forms("café"), forms("größe")
    found, table = read(source(
        f"train/{one}/1.png", f"val/{other}/2.png", f"train/{word}/3.png",
        "train/tea /4.png", "val/tea/5.png",
    ))  # fmt: skip
    assert found.class_names == (one, word, "tea")
    assert [label for label, _ in table["val"].values()] == [one, "tea"]
    assert found.notes == [
        r"class café is of 'cafe\u0301' and 'caf\xe9', which are one name",
        "class tea is of 'tea' and 'tea ', which are one name",
    ]


def test_a_name_in_another_form_is_a_class_of_the_composed_name(source):
    one, other = forms("naïve")
    root = source(f"{other}/1.png", "b/2.png")
    (root / one).mkdir()
    found, _ = read(root)
    assert found.class_names == ("b", one)
    assert (found.notes, found.left_out) == ([], {})


def table(tmp_path, text, *names, encoding="utf-8"):
    files = made(*(names or ("x/1.png", "2.png", "sub dir/3,4.png")))
    text = text.encode(encoding) if isinstance(text, str) else text
    return write(tmp_path / "some", {**files, "labels.csv": text})


def labels(root, kind="labels.csv"):
    found, rows = read(root)
    assert found.kind == kind
    return found, {s: {n: label for n, (label, _) in r.items()} for s, r in rows.items()}


@pytest.mark.parametrize(
    ("encoding", "end"), [("utf-8", "\n"), ("utf-8", "\r"), ("utf-8-sig", "\r\n")]
)
def test_labels_csv_gives_paths_their_labels(tmp_path, encoding, end):
    lines = [
        "path, label ",
        "./x/1.png,cat",
        '"sub dir/3,4.png","dog, ""big"""',
        "2.png,cat",
    ]
    found, rows = labels(table(tmp_path, end.join(lines), encoding=encoding))
    assert found.class_names == ("cat", 'dog, "big"')
    expected = {"x/1.png": "cat", "sub dir/3,4.png": 'dog, "big"', "2.png": "cat"}
    assert rows == {"train": expected}
    assert (found.rejected, found.notes) == ([], [])


def test_labels_csv_may_name_splits_and_have_other_columns(tmp_path):
    text = (
        "id,split,path,label\n7,train,x/1.png,b\n8,test,2.png,a\n\n9,,sub dir/3,4.png,a\n"
    )
    text = text.replace("sub dir/3,4.png", '"sub dir/3,4.png"')
    _, rows = labels(table(tmp_path, text))
    assert rows == {
        "train": {"x/1.png": "b", "sub dir/3,4.png": "a"},
        "test": {"2.png": "a"},
    }


def test_labels_csv_of_windows_and_in_a_wrapper(tmp_path):
    root = table(
        tmp_path, "path,label\r\nx\\1.png,cat\r\n2.png,dog\r\n", "x/1.png", "2.png"
    )
    expected = {"train": {"x/1.png": "cat", "2.png": "dog"}}
    assert labels(root)[1] == expected
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(root, "set")
    assert labels(tmp_path / "a.tar")[1] == expected


@pytest.mark.parametrize("swapped", [False, True])
def test_labels_csv_finds_a_file_in_another_form_of_its_name(tmp_path, swapped):
    order = -1 if swapped else 1
    (written, stored), (windows, second) = forms("é/ü.png")[::order], forms("é/ö")[::order]
    windows = windows.replace("/", "\\")
    text = f"path,label\n{written},a\n{windows},{forms('ñ')[0]}\n2.png,{forms('ñ')[1]}\n"
    found, rows = labels(table(tmp_path, text, stored, second, "2.png"))
    assert found.class_names == ("a", forms("ñ")[0])
    assert rows["train"] == {stored: "a", second: forms("ñ")[0], "2.png": forms("ñ")[0]}
    assert found.rejected == []


def test_lines_of_labels_csv_that_name_no_file_are_listed(tmp_path):
    text = (
        "path,label\n2.png,a\ngone.png,a\n../2.png,a\n/etc/passwd,a\n2.png,b\n"
        "labels.csv,a\nhttp://x/y.png,a\n"
    )
    found, rows = labels(table(tmp_path, text))
    assert rows == {"train": {"2.png": "a"}}
    assert found.rejected == [
        ("gone.png", "named in labels.csv line 3, and not there"),
        ("../2.png", "named in labels.csv line 4, and not there"),
        ("/etc/passwd", "named in labels.csv line 5, and not there"),
        ("2.png", "named a second time in labels.csv line 6"),
        ("labels.csv", "named a second time in labels.csv line 7"),
        ("http://x/y.png", "named in labels.csv line 8, and not there"),
    ]
    assert found.notes == ["2 files are not in labels.csv, such as sub dir/3,4.png"]


@pytest.mark.parametrize(
    ("written", "stored"),
    [("X/1.PNG", "x/1.png"), ("é/1.png", "É/1.png"), ("a\\b.jpg", "A/b.JPG")],
)
def test_a_file_that_differs_in_capitals_is_named(tmp_path, written, stored):
    root = table(tmp_path, f"path,label\n2.png,a\n{written},b\n", "2.png", stored)
    found, rows = labels(root)
    assert rows == {"train": {"2.png": "a"}}
    why = f"named in labels.csv line 3, and not there; {stored} is"
    assert found.rejected == [(written, why)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "labels.csv has the columns none; its first line must name path and label"),
        ("file,class\n2.png,a\n", "has the columns file, class; its first line must"),
        ("2.png,a\n", "has the columns 2.png, a; its first line must"),
        ("path,label\n", "holds no image by labels.csv; it must"),
        ("path,label\na.jpg,a\n", "by labels.csv (refused: a.jpg, named in labels.csv"),
        ('path,label\n"x/1.png\n",a\n2.png,\n', "line 4 needs a path, a label and, if"),
        ("path,label,split\n2.png,a,Train\n", "line 2 needs a path, a label and, if any,"),
        ("path,label\n2.png,na\xefve".encode("latin1"), "is not UTF-8; save it as UTF-8"),
        ("path,label\n2.png," + "x" * 200_000, "labels.csv cannot be read (field larger"),
    ],
)
def test_a_bad_labels_csv_is_refused_by_its_line(tmp_path, text, said):
    refused(table(tmp_path, text), re.escape(said))


def hugging(rows, form):
    """Rows of (file_name, label) as metadata.csv or metadata.jsonl."""
    if form == "jsonl":
        lines = [json.dumps({"file_name": n, "label": v, "text": "a, b"}) for n, v in rows]
    else:
        lines = ["file_name,text,label", *(f'{name},"a, b",{v}' for name, v in rows)]
    return ("\n".join(lines) + "\n").encode()


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("wrapper", ["", "set/"])
def test_metadata_of_hugging_face_labels_the_files_beside_it(tmp_path, form, wrapper):
    name = f"metadata.{form}"
    given = {
        f"train/{name}": hugging([("1.png", "cat"), ("sub/2.jpg", "dog")], form),
        f"test/{name}": hugging([("1.png", "dog")], form),
        **made("train/1.png", "train/sub/2.jpg", "test/1.png", "test/no.png"),
    }
    root = write(tmp_path / "some", {wrapper + name: data for name, data in given.items()})
    found, rows = labels(root, name)
    assert found.class_names == ("cat", "dog")
    assert rows == {
        "train": {"train/1.png": "cat", "train/sub/2.jpg": "dog"},
        "test": {"test/1.png": "dog"},
    }
    assert found.rejected == []
    assert found.notes == [
        f"1 files are not in test/{name} and train/{name}, such as test/no.png"
    ]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_metadata_on_top_has_its_splits_by_folders(tmp_path, form):
    data = hugging([("train/1.png", 10), ("valid/2.png", 2), ("more/3.png", 2)], form)
    names = made("train/1.png", "valid/2.png", "more/3.png")
    root = write(tmp_path / "some", {f"metadata.{form}": data, **names})
    found, rows = labels(root, f"metadata.{form}")
    assert found.class_names == ("2", "10")
    assert rows == {
        "train": {"train/1.png": "10", "more/3.png": "2"}, "valid": {"valid/2.png": "2"},
    }  # fmt: skip
    flat = {f"metadata.{form}": hugging([("1.png", "a"), ("no.png", "a")], form)}
    found, rows = labels(
        write(tmp_path / "x", {**flat, **made("1.png")}), f"metadata.{form}"
    )
    assert rows == {"train": {"1.png": "a"}}
    why = f"named in metadata.{form} line {3 if form == 'csv' else 2}, and not there"
    assert found.rejected == [("no.png", why)]


def test_metadata_without_labels_leaves_the_class_folders(source):
    captions = b"file_name,text\na/1.png,a cat\n"
    root = source("train/a/1.png", "val/a/2.png")
    write(root, {"train/metadata.csv": captions})
    found, rows = read(root)
    assert found.kind == "class folders"
    assert [*rows] == ["train", "val"]
    flat = write(root.parent / "flat", {"train/metadata.csv": captions, "train/1.png": b""})
    refused(
        flat,
        "train look like .*; train/metadata.csv has the columns file_name, text, and must"
        " have file_name and label",
    )


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("metadata.jsonl", b"file_name", "line 1 is no JSON object, such as {"),
        (
            "metadata.jsonl",
            b'{"file_name": "1.png", "label": "a"}\n[1]',
            "line 2 is no JSON",
        ),
        (
            "metadata.jsonl",
            b'{"file_name": "1.png", "label": [1]}',
            "line 1 needs a file_na",
        ),
        (
            "metadata.jsonl",
            b'{"file_name": "1.png", "label": null}',
            "line 1 needs a file_n",
        ),
        (
            "metadata.jsonl",
            b'{"file_name": "\\ud800.png", "label": "a"}',
            "line 1 needs a file_n",
        ),
        ("metadata.csv", b"file_name,label\n1.png,\n", "line 2 needs a file_name, a label"),
        (
            "metadata.csv",
            b"file_name,label\n\xff.png,a\n",
            "is not UTF-8; save it as UTF-8",
        ),
    ],
)
def test_bad_metadata_is_refused_by_its_line(tmp_path, name, data, said):
    root = write(tmp_path / "some", {f"train/{name}": data, **made("train/1.png")})
    refused(root, re.escape(f"train/{name} {said}"))
