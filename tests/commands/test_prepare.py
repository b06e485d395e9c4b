"""Folders and archives -> datasets: the whole command, good input and bad."""

import csv
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxcls import commands
from jaxcls.data import sources, writer
from jaxcls.errors import InputError
from tests.data.importers.test_trees import packed, tar
from tests.images import encode, far, picture, pillow, pixels, segment, upright, write

CLASSES = ("cat, big", "dog", "naïve ☃")


def photos(per_class=4, splits=("train", "val"), start=0):
    """{path: file} of small photographs, JPEG and PNG, each another."""
    files = {}
    for split in splits:
        for name in CLASSES:
            for k in range(per_class):
                suffix, form = (("jpg", "JPEG"), ("PNG", "PNG"))[k % 2]
                files[f"{split}/{name}/{k}.{suffix}"] = picture(start + len(files), form)
    return files


@pytest.fixture
def source(tmp_path):
    return lambda files: write(tmp_path / "some photos", files)


@pytest.fixture
def run(tmp_path):
    """``run(source, "--flag=1")`` -> the dataset's folder."""

    def make(source, *more, name="photos", data_dir="data"):
        root = tmp_path / data_dir
        arguments = [f"--source={source}", f"--name={name}", f"--data_dir={root}", *more]
        assert commands.main(["prepare", *arguments]) == 0
        return root / name / "1.0.0"

    return make


@pytest.fixture
def bad(tmp_path):
    """``bad("--source=x", said="...")``: refused in one line, and nothing is written."""

    def check(*arguments, said, left=()):
        root = tmp_path / "data"
        if not any(a.startswith("--data_dir") for a in arguments):
            arguments = (*arguments, f"--data_dir={root}")
        with pytest.raises(InputError, match=said) as caught:
            commands.main(["prepare", *arguments])
        assert "\n" not in str(caught.value)
        below = {p.relative_to(root) for p in root.rglob("*") if p.is_file()}
        assert below == {pathlib.Path(name) for name in left}

    return check


def table(folder):
    """{split: {file name: (pixels, class name)}} by TFDS's own reader and decoder."""
    builder = tfds.builder_from_directory(folder)
    names = builder.info.features["label"].names
    return {
        split: {
            os.fsdecode(example["file_name"]): (example["image"], names[example["label"]])
            for example in builder.as_data_source(split)
        }
        for split in builder.info.splits
    }


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rejected(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "reason"]
    return dict(rows)


def test_a_folder_becomes_a_dataset_of_its_pixels(source, run, capsys):
    files = {**photos(), "train/dog/grey.png": encode(pixels(9)[:, :, 0])}
    folder = run(source(files))
    found = table(folder)
    assert {name for rows in found.values() for name in rows} == set(files)
    for split, rows in found.items():
        for name, (image, label) in rows.items():
            assert name.split("/")[:2] == [split, label]
            assert far(image, pillow(files[name])) <= 1
    dataset = sources.Dataset("photos", str(folder.parent.parent))
    assert dataset.facts.class_names == CLASSES
    assert dataset.facts.image_shape == (20, 24, 3)
    assert dataset.facts.fingerprint == sources.manifest(folder)["fingerprint"]
    records = dataset.source("train", "data.train")
    # Plain files are kept byte for byte.
    encoded = sorted(image for image, _ in records.read(np.arange(len(records))))
    assert encoded == sorted(d for name, d in files.items() if name.startswith("train"))
    manifest = sources.manifest(folder)
    assert manifest["classes"] == list(CLASSES)
    assert manifest["examples"] == {"train": [4, 5, 4], "val": [4, 4, 4]}
    assert (manifest["rejected"], manifest["shrink"]) == (0, None)
    first, *rows, last = capsys.readouterr().out.splitlines()
    assert first.endswith("some photos: class folders, 3 classes, train=13 val=12")
    assert [row.split() for row in rows if "──" not in row] == [
        ["class", "train", "val"], ["cat,", "big", "4", "4", "(50%)"],
        ["dog", "5", "4", "(44%)"], ["naïve", "☃", "4", "4", "(50%)"],
    ]  # fmt: skip
    assert last.startswith("done: photos train=13 val=12 classes=3 rejected=0 sha256:")
    assert last.endswith(str(folder))
    before = files_of(folder)
    with pytest.raises(InputError, match=r"photos/1.0.0 exists; give another --name, or"):
        run(source(files))
    assert files_of(folder) == before


def test_every_form_of_a_source_and_every_thread_count_give_the_same_bytes(
    source, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(writer, "SHARD_BYTES", 5000)
    raw = {os.fsdecode(b"train/dog/\xff odd\n.png"): picture(70, "PNG")}
    files = {**photos(), "train/dog/cmyk.jpg": encode(Image.new("CMYK", (9, 5)), "JPEG")}
    root = source({**files, **raw})
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(root, "wrapper")
    shuffled = sorted({**files, **raw}.items(), key=lambda item: hash(item[0]))
    tar(tmp_path / "b.tgz", dict(shuffled), mode="w:gz")
    expected = files_of(run(root, "--threads=1"))
    assert sum("array_record" in name for name in expected) > 2
    assert files_of(run(root, "--threads=7", data_dir="other place")) == expected
    for number, name in enumerate(("a.tar", "b.tgz")):
        assert files_of(run(tmp_path / name, data_dir=f"d{number}")) == expected
    shutil.rmtree(tmp_path / "data")
    plain = write(tmp_path / "plain", files)
    packed(tmp_path / "c.zip", dict(reversed(files.items())))
    assert files_of(run(plain)) == files_of(run(tmp_path / "c.zip", data_dir="d9"))


def test_a_sample_of_a_split_is_a_sample_of_its_classes(source, run):
    files = {f"{name}/{k}.png": picture(k, "PNG") for name in "abcd" for k in range(50)}
    folder = run(source(files))
    first = np.load(folder / "labels-train.npy")[:60]
    assert np.bincount(first, minlength=4).min() >= 6


BAD = {
    "a/cut.jpg": (picture(1)[:-300], "truncated"),
    "a/text, of words.jpg": (b"plain text", "not a readable image"),
    "b/phone.HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC; convert it to JPEG first"),
    "stray.png": (picture(3), "in no class folder"),
}


def test_bad_files_are_listed_and_stop_the_command(source, bad, run, tmp_path, capsys):
    good = {f"{name}/{k}.jpg": picture(k) for k, name in enumerate("aabb")}
    root = source({**good, **{name: data for name, (data, _) in BAD.items()}})
    (root / "a" / "gone.jpg").symlink_to("nowhere")
    expected = {name: said for name, (_, said) in BAD.items()}
    expected["a/gone.jpg"] = "a broken link"
    arguments = f"--source={root}", "--name=photos", "--max_bad=4"
    said = r"^5 of the files of .* such as a/cut.jpg: .*leave them out with --max_bad=5$"
    listed = "photos/rejected.csv"
    bad(*arguments, said=said, left=[listed])
    found = rejected(tmp_path / "data" / listed)
    assert list(found) == sorted(expected)
    for name, reason in expected.items():
        assert reason.lower() in found[name].lower()
    capsys.readouterr()
    folder = run(root, "--max_bad=5")
    assert table(folder)["train"].keys() == good.keys()
    assert sources.manifest(folder)["rejected"] == 5
    assert rejected(folder.parent / "rejected.csv") == found
    out = capsys.readouterr().out
    assert "note: 5 of the files of" in out
    assert "rejected=5" in out


def test_an_old_list_of_bad_files_goes_when_they_are_right(source, bad, run, tmp_path):
    root = source({"a/1.jpg": picture(1), "b/2.jpg": b"no image"})
    bad(f"--source={root}", "--name=x", said="^1 of", left=["x/rejected.csv"])
    (root / "b" / "2.jpg").write_bytes(picture(2))
    run(root, name="x")
    assert os.listdir(tmp_path / "data" / "x") == ["1.0.0"]


def test_names_that_cannot_be_printed_are_listed_and_shown(source, run, capsys):
    odd = os.fsdecode(b"a/\xff\n.jpg")
    root = source({"a/1.jpg": picture(1), "b/2.jpg": picture(1), odd: b"", "b/3.jpg": b""})
    folder = run(root, "--max_bad=2")
    assert set(rejected(folder.parent / "rejected.csv")) == {odd, "b/3.jpg"}
    assert r"'a/\udcff\n.jpg'" in capsys.readouterr().out


def test_notes_and_shrink(source, run, capsys):
    large = picture(1, "PNG", height=90, width=120)
    files = {"train/a/1.png": large, "val/a/3.png": large}
    root = source({**files, "train/b/2.png": picture(2, "PNG")})
    folder = run(root, "--shrink=30", "--quality=80")
    assert sources.manifest(folder)["shrink"] == {"short": 30, "quality": 80}
    rows = table(folder)["train"]
    assert [rows[f"train/{n}.png"][0].shape for n in ("a/1", "b/2")] == [
        (30, 40, 3), (20, 24, 3),
    ]  # fmt: skip
    notes = [line for line in capsys.readouterr().out.splitlines() if "note: " in line]
    assert notes == [
        "note: val has no image of b",
        "note: 1 images are in train and in val, such as train/a/1.png and val/a/3.png:"
        " scores on val will be too good",
        # Of 4:3 a quarter, of 24 x 20 a sixth.
        "note: a centre crop leaves out 22% of an image's pixels (17% of b's, 25% of a's);"
        " 'decode | letterbox(224)' keeps all",
    ]


def test_what_is_stored_anew_is_a_table_and_growth_is_said(source, run, capsys):
    exif = Image.Exif()
    exif[0x112] = 6
    large = np.ascontiguousarray(pixels(0, height=200, width=300))
    turned = encode(large, "JPEG", exif=exif), encode(large[::-1], "JPEG", exif=exif)
    root = source({
        "a/1.jpg": turned[0], "b/2.jpg": turned[1], "a/3.gif": picture(3, "GIF"),
        "a/4.jpg": picture(4), "b/5.jpg": encode(large, "JPEG"),
    })  # fmt: skip
    folder = run(root)
    found = sources.Dataset("photos", str(folder.parent.parent)).source("train", "k")
    images = dict(zip(
        map(os.fsdecode, found.names(np.arange(5))),
        (image for image, _ in found.read(np.arange(5))), strict=True,
    ))  # fmt: skip
    after, before = (
        sum(len(images[n]) for n in ("a/1.jpg", "b/2.jpg")),
        sum(map(len, turned)),
    )
    assert far(pillow(images["a/1.jpg"]), upright(turned[0])) == 0
    gif, file = len(images["a/3.gif"]), len(picture(3, "GIF"))
    rows = [" ".join(row.split()) for row in capsys.readouterr().out.splitlines()]
    at = rows.index("stored anew such as files bytes of before")
    first = next(name for name in images if name in ("a/1.jpg", "b/2.jpg"))
    times = f"{after / before:.1f} times"
    assert [row for row in rows[at + 2 : -1] if "centre crop" not in row] == [
        f"turned upright, as PNG {first} 2 {after:,} {after / before:.2f} times",
        f"of another form, as PNG a/3.gif 1 {gif:,} {gif / file:.2f} times",
        f"note: 2 turned files are stored as PNG, which changes no pixel: {times} their"
        " bytes; --shrink=512 stores larger ones as JPEG",
    ]
    assert after > 2 * before
    run(root, "--shrink=100", name="small")
    out = capsys.readouterr().out
    assert "stored as PNG" not in out
    (row,) = [line.split() for line in out.splitlines() if "shrunk, as JPEG" in line]
    assert row[4] == "3"


def test_a_leak_is_found_by_its_pixels_across_all_splits(source, run, capsys):
    a, b, c, d = (np.ascontiguousarray(pixels(k, 40, 60)) for k in range(4))
    jpeg = encode(c, "JPEG", exif=Image.Exif())
    comment = segment(jpeg, 0xFE, b"taken by me")
    other = d.copy()
    other[39, 59, 2] ^= 1
    folder = run(source({
        "train/x/a.png": encode(a, compress_level=1), "val/x/a0.png": encode(a, "BMP"),
        "train/y/b.jpg": encode(b, "JPEG"),
        "test/y/b.png": encode(pillow(encode(b, "JPEG")), compress_level=9),
        "val/y/c.jpg": jpeg, "test/x/c1.jpg": comment,
        "train/x/d.png": encode(d), "val/y/d.png": encode(other),
        "train/x/e.png": encode(pixels(9)), "train/y/e2.png": encode(pixels(9), "TIFF"),
    }))  # fmt: skip
    assert sources.manifest(folder)["examples"]["train"] == [3, 2]
    notes = [line for line in capsys.readouterr().out.splitlines() if "note: " in line]
    leak = "note: 1 images are in {} and in {}, such as {} and {}: scores on {} will be too"
    pair = "train/x/e.png and train/y/e2.png"
    swapped = "train/y/e2.png and train/x/e.png"
    expected = {
        leak.format("train", "val", "train/x/a.png", "val/x/a0.png", "val"),
        leak.format("train", "test", "train/y/b.jpg", "test/y/b.png", "test"),
        leak.format("val", "test", "val/y/c.jpg", "test/x/c1.jpg", "test"),
    }
    assert {line.removesuffix(" good") for line in notes if "scores on" in line} == expected
    said = [line for line in notes if not re.search("scores on|centre crop", line)]
    assert [line.replace(swapped, pair) for line in said] == [
        f"note: train holds 1 images twice, such as {pair}",
        f"note: train has 1 images in two classes, such as {pair}",
    ]


def test_a_line_is_listed_as_no_image(source, bad, run, capsys):
    good = {f"{name}/{k}.jpg": picture(k) for k, name in enumerate("aabb")}
    root = source({**good, "a/line.png": encode(np.zeros((1, 5000), np.uint8))})
    bad(
        f"--source={root}", "--name=photos", left=["photos/rejected.csv"],
        said=r"such as a/line.png: 5000x1 pixels, over 100 times .* with --max_bad=1$",
    )  # fmt: skip
    folder = run(root, "--max_bad=1")
    assert list(rejected(folder.parent / "rejected.csv")) == ["a/line.png"]
    assert table(folder)["train"].keys() == good.keys()


def test_what_is_left_out_is_a_table_of_reasons(source, run, capsys):
    files = {f"{name}/{k}.jpg": picture(k) for k, name in enumerate("aabb")}
    takeout = {f"{name}.json": b"{}" for name in files}
    others = {"a/Thumbs.db": b"x", "b/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg": picture(9)}
    root = source({**files, **takeout, **others, "a/notes.txt": b"text"})
    (root / "c").mkdir()
    folder = run(root)
    assert table(folder)["train"].keys() == files.keys()
    rows = [" ".join(row.split()) for row in capsys.readouterr().out.splitlines()]
    at = rows.index("left out such as entries")
    assert rows[at + 2 : -1] == [
        "hidden, or of a system a/Thumbs.db 2",
        "not named as an image a/0.jpg.json 5",
        "a folder without an image c/ 1",
    ]
    assert rows[at - 4 : at] == ["class train", rows[at + 1][:15], "a 2", "b 2"]


def test_fractions_are_of_each_class_and_their_shares_are_shown(source, run, capsys):
    files = {f"{name}/{k}.jpg": picture(k) for name in "abcdefghij" for k in range(8)}
    folder = run(source(files), "--val_fraction=0.2", "--test_fraction=0.1")
    manifest = sources.manifest(folder)
    assert manifest["examples"] == {"train": [5] * 10, "val": [2] * 10, "test": [1] * 10}
    assert (manifest["val_fraction"], manifest["test_fraction"]) == (0.2, 0.1)
    rows = [" ".join(row.split()) for row in capsys.readouterr().out.splitlines()]
    assert rows[0].endswith("10 classes, train=50 val=20 test=10")
    assert rows[1] == "class train val test"
    assert rows[3:13] == [f"{name} 5 2 (25%) 1 (12%)" for name in "abcdefghij"]


def test_a_thousand_classes_are_a_short_table(source, run, capsys):
    run(source({f"{k}/1.jpg": picture(k) for k in range(40)}))
    rows = [" ".join(row.split()) for row in capsys.readouterr().out.splitlines()]
    assert rows[3:-1] == [*(f"{k} 1" for k in range(29)), "11 more classes 11"]


def test_a_class_whose_files_are_all_bad_is_refused(source, bad):
    root = source({"a/1.jpg": picture(1), "b/2.jpg": picture(2), "c/3.jpg": b""})
    bad(
        f"--source={root}", "--name=x", "--max_bad=9",
        said="no image of class c can be used; put its files right, or take",
        left=["x/rejected.csv"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "a\nb/1.jpg",
            r"class 'a\\nb' has U\+000A \(a control character\) in",
        ),
        ("a\x1b[2Jb/1.jpg", r"class 'a\\x1b\[2Jb' has U\+001B \(a control"),
        ("a\u2028b/1.jpg", r"class 'a\\u2028b' has U\+2028 \(LINE SEPARATOR\)"),
        ("a\u202eb/1.jpg", r"has U\+202E \(RIGHT-TO-LEFT OVERRIDE\) in its name; rename"),
        (
            os.fsdecode(b"\xff/1.jpg"),
            r"class '\\udcff' has byte 0xFF, which is not UTF-8, in",
        ),
        (" /1.jpg", r"class ' ' has a space at the start or the end of its name"),
    ],
)
def test_a_class_that_cannot_be_printed_is_refused(source, bad, name, said):
    bad(f"--source={source({name: picture(1)})}", "--name=x", said=said)


def test_joiners_and_spaces_are_part_of_a_class_name(source, run):
    names = [
        "\N{WOMAN}\u200d\N{PERSONAL COMPUTER}", "a\xa0b", "flag\U000e0067",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "soft\xadhyphen",
    ]  # fmt: skip
    folder = run(source({f"{name}/1.jpg": picture(k) for k, name in enumerate(names)}))
    assert sources.manifest(folder)["classes"] == sorted(names)
    labels = [label for _, label in table(folder)["train"].values()]
    assert sorted(labels) == sorted(names)
    facts = sources.Dataset("photos", str(folder.parent.parent)).facts
    assert facts.class_names == tuple(sorted(names))


def test_a_space_after_a_class_name_is_none_of_it(source, run):
    folder = run(source({"cat /1.jpg": picture(1), "\u3000dog/2.jpg": picture(2)}))
    assert sources.manifest(folder)["classes"] == ["cat", "dog"]


def test_a_split_whose_files_are_all_bad_is_refused(source, bad):
    root = source({"train/a/1.jpg": picture(1), "val/a/2.jpg": b""})
    bad(
        f"--source={root}", "--name=x", "--max_bad=9",
        said=r"no image of split val can be used", left=["x/rejected.csv"],
    )  # fmt: skip


def test_the_source_may_lie_beside_the_datasets(source, run, bad, tmp_path):
    root = source(photos())
    with pytest.raises(InputError, match=r"/one lies in --source="):
        commands.main(["prepare", f"--source={root}", "--name=one", f"--data_dir={root}"])
    folder = run(root, data_dir=".")
    assert folder == tmp_path / "photos" / "1.0.0"
    moved = root.rename(tmp_path / "x")
    bad(
        f"--source={moved}", "--name=x", f"--data_dir={tmp_path}",
        said=r"/x lies in --source=.*; give a --data_dir outside it, or another --name",
    )  # fmt: skip


def test_a_bad_input_is_one_line_and_status_2(command, tmp_path):
    done = command("prepare", f"--source={tmp_path}/a\nb", "--name=x")
    assert done.returncode == 2
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert done.stderr.startswith("error: --source=")


def start(root, data_dir, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "jaxcls", "prepare", f"--source={root}", "--name=x",
         f"--data_dir={data_dir}", "--threads=1", *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_and_two_at_once_are_one(tmp_path, run, capsys):
    data = picture(1, "PNG", height=200, width=200)
    big = {"a/big.png": encode(Image.effect_noise((6000, 6000), 50)), "b/1.png": data}
    root = write(tmp_path / "some", {**big, **{f"b/{k}.png": data for k in range(2, 400)}})
    first = start(root, tmp_path / "data")
    assert first.stdout.readline().endswith("class folders, 2 classes, train=400\n")
    with pytest.raises(InputError, match=r"x/1.0.0 is being written by another process"):
        run(root, name="x")
    first.send_signal(signal.SIGKILL)
    _, said = first.communicate()
    assert (first.returncode, said) == (-signal.SIGKILL, "")
    left = os.listdir(tmp_path / "data" / "x")
    assert left == [".1.0.0.incomplete"]
    with pytest.raises(InputError, match="'x' is not prepared in"):
        sources.Dataset("x", str(tmp_path / "data"))
    folder = run(root, name="x")
    assert os.listdir(tmp_path / "data" / "x") == ["1.0.0"]
    assert sources.Dataset("x", str(tmp_path / "data")).facts.splits == {"train": 400}
    assert files_of(folder) == files_of(run(root, name="x", data_dir="again"))


# Ctrl-C comes while its fourth image is cleaned: what is done after that is waited for.
INTERRUPTED = """
import itertools, os, signal
from jaxcls.data import preparing as prepare
from jaxcls.__main__ import main
clean, calls = prepare.clean, itertools.count()
def interrupted(*given):
    if next(calls) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return clean(*given)
prepare.clean = interrupted
signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's & has it ignored.
main()
"""


def test_ctrl_c_leaves_nothing(tmp_path):
    files = {f"{k % 2}/{k}.png": picture(k, "PNG") for k in range(20)}
    root = write(tmp_path / "some", files)
    flags = f"--source={root}", "--name=x", f"--data_dir={tmp_path}/data", "--threads=1"
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "prepare", *flags],
        capture_output=True,
        text=True,
    )
    assert "class folders, 2 classes, train=20\n" in done.stdout
    assert "done" not in done.stdout
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert os.listdir(tmp_path / "data") == []
