"""Folders and archives -> datasets: the whole command, good input and bad."""

import csv
import errno
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image

from jaxcls import commands
from jaxcls.data import decode, sources, writer
from jaxcls.errors import InputError
from tests.data.importers.test_trees import packed, tar
from tests.data.test_clean import png
from tests.images import encode, picture, pixels, write

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
    files = photos()
    folder = run(source(files))
    found = table(folder)
    assert {name for rows in found.values() for name in rows} == set(files)
    for split, rows in found.items():
        for name, (image, label) in rows.items():
            assert name.split("/")[:2] == [split, label]
            exact = np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB"))
            assert np.abs(image.astype(int) - exact).max() <= 1
    info = tfds.builder_from_directory(folder).info
    assert info.features["label"].names == list(CLASSES)
    assert info.features["image"].shape == (20, 24, 3)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["classes"] == list(CLASSES)
    assert manifest["examples"] == {"train": [4, 4, 4], "val": [4, 4, 4]}
    assert (manifest["rejected"], manifest["shrink"]) == (0, None)
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("some photos: class folders, 3 classes, train=12 val=12")
    assert out[-1].startswith("done: photos train=12 val=12 classes=3 rejected=0 sha256:")
    assert out[-1].endswith(str(folder))
    assert len(out) == 2


def test_plain_files_are_kept_byte_for_byte(source, run):
    files = photos()
    folder = run(source(files))
    with ArrayRecordDataSource(str(next(folder.glob("*train*record*")))) as records:
        encoded = records.__getitems__(range(len(records)))
    images = [data for name, data in files.items() if name.startswith("train")]
    assert all(sum(image in record for record in encoded) == 1 for image in images)


def test_the_trainer_reads_it(source, run):
    files = {**photos(), "train/dog/grey.jpg": encode(pixels(9)[:, :, 0], "JPEG")}
    folder = run(source(files))
    dataset = sources.Dataset("photos", str(folder.parent.parent))
    assert dataset.facts.class_names == CLASSES
    assert dataset.facts.fingerprint == sources.manifest(folder)["fingerprint"]
    split = dataset.source("train", "data.train")
    for image, _ in split.read(np.arange(len(split))):
        assert decode.decode(3)(image, None).shape == (20, 24, 3)


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


def test_the_fingerprint_is_of_the_content(source, run):
    root = source(photos())
    before = sources.manifest(run(root, name="one"))["fingerprint"]
    assert sources.manifest(run(root, name="two"))["fingerprint"] == before
    (root / "val" / "dog" / "0.jpg").write_bytes(picture(77))
    assert sources.manifest(run(root, name="three"))["fingerprint"] != before


def test_classes_alone_are_split_by_a_hash_of_the_path(source, run):
    files = {f"{CLASSES[k % 3]}/{k}.png": picture(k, "PNG") for k in range(60)}
    root = source(files)
    before = table(run(root, "--val_fraction=0.3", name="one"))
    assert {**before["train"], **before["val"]}.keys() == files.keys()
    assert 8 <= len(before["val"]) <= 30
    write(root, {f"dog/{k}.png": picture(k, "PNG") for k in range(100, 120)})
    after = table(run(root, "--val_fraction=0.3", name="two"))
    for split in ("train", "val"):
        assert before[split].keys() == files.keys() & after[split].keys()


def test_labels_csv_with_numbers(source, run):
    lines = ["path,label", *(f"{k}.png,{label}" for k, label in enumerate((10, 2, 1, 10)))]
    files = {f"{k}.png": picture(k, "PNG") for k in range(4)}
    folder = run(source({**files, "labels.csv": "\n".join(lines).encode()}))
    assert tfds.builder_from_directory(folder).info.features["label"].names == [
        "1", "2", "10",
    ]  # fmt: skip
    assert {n: label for n, (_, label) in table(folder)["train"].items()} == {
        "0.png": "10", "1.png": "2", "2.png": "1", "3.png": "10",
    }  # fmt: skip


def test_a_sample_of_a_split_is_a_sample_of_its_classes(source, run):
    files = {f"{name}/{k}.png": picture(k, "PNG") for name in "abcd" for k in range(50)}
    folder = run(source(files))
    first = np.load(folder / "labels-train.npy")[:60]
    assert np.bincount(first, minlength=4).min() >= 6


ODD = np.ascontiguousarray(pixels(5))


def odd_images():
    """{name: file} of one picture, in every kind of file that is not plain RGB."""
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = np.concatenate([ODD, np.full((20, 24, 1), 255, np.uint8)], -1)
    image = Image.fromarray(ODD)
    return {
        "alpha.png": encode(alpha),
        "cmyk.tif": encode(image.convert("CMYK"), "TIFF"),
        "exif.png": encode(np.ascontiguousarray(np.rot90(ODD)), exif=exif),
        "plain.PNG": encode(ODD),
        "webp.webp": encode(ODD, "WEBP", lossless=True),
        "bmp.bmp": encode(ODD, "BMP"),
    }


def test_odd_images_come_out_as_rgb_by_tfds_own_decoding(source, run):
    grey = np.ascontiguousarray(ODD[:, :, 0])
    files = {
        **odd_images(),
        "grey.png": encode(grey),
        "grey.jpg": encode(grey, "JPEG"),
        "wide.png": encode(grey.astype(np.uint16) * 257),
        "palette.png": encode(Image.fromarray(grey).convert("P")),
    }
    rows = table(run(source({f"a/{name}": data for name, data in files.items()})))["train"]
    assert len(rows) == len(files)
    for name, (image, _) in rows.items():
        assert image.shape == (20, 24, 3)
        assert image.dtype == np.uint8
        stem = pathlib.PurePath(name).stem
        expected = np.stack([grey] * 3, -1) if stem in ("grey", "wide", "palette") else ODD
        tolerance = {"grey.jpg": 40}.get(pathlib.PurePath(name).name, 1)
        assert np.abs(image.astype(int) - expected).max() <= tolerance, name


def animated(form):
    frames = [Image.fromarray(ODD[::-1]), Image.fromarray(ODD)]
    return encode(ODD, form, save_all=True, append_images=frames)


BAD = {
    "a/empty.jpg": (b"", "empty, 0 bytes"),
    "a/cut.jpg": (picture(1)[:-300], "truncated"),
    "a/cut.png": (picture(2, "PNG")[:-20], "truncated"),
    "a/text, of words.jpg": (b"plain text", "not a readable image"),
    "a/move.gif": (animated("GIF"), "animated, 3 frames"),
    "a/move.png": (animated("PNG"), "animated, 3 frames"),
    "b/move.webp": (animated("WEBP"), "animated, 3 frames"),
    "b/phone.HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC; convert it to JPEG first"),
    "b/large.png": (png(30_000, 30_000, zlib.compress(b"")), "30000x30000 pixels, over"),
    "b/words.png": (b"notes", "not a readable image"),
    "stray.png": (picture(3), "in no class folder"),
}


def test_bad_files_are_listed_and_stop_the_command(source, bad, run, tmp_path, capsys):
    good = {f"{name}/{k}.jpg": picture(k) for k, name in enumerate("aabb")}
    root = source({**good, **{name: data for name, (data, _) in BAD.items()}})
    (root / "a" / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(root / "a" / "pipe")
    more = {"a/gone.jpg": "a broken link", "a/pipe": "not a regular file"}
    expected = {**{name: said for name, (_, said) in BAD.items()}, **more}
    arguments = f"--source={root}", "--name=photos"
    said = r"^13 of the files of .* such as a/cut.jpg: .*leave them out with --max_bad=13$"
    listed = "photos/rejected.csv"
    bad(*arguments, said=said, left=[listed])
    found = rejected(tmp_path / "data" / listed)
    assert list(found) == sorted(expected)
    for name, reason in expected.items():
        assert reason.lower() in found[name].lower()
    bad(*arguments, "--max_bad=12", said=said, left=[listed])
    capsys.readouterr()
    folder = run(root, "--max_bad=13")
    assert table(folder)["train"].keys() == good.keys()
    assert sources.manifest(folder)["rejected"] == 13
    assert rejected(folder.parent / "rejected.csv") == found
    out = capsys.readouterr().out
    assert "note: 13 of the files of" in out
    assert "rejected=13" in out
    assert sources.Dataset("photos", str(tmp_path / "data")).facts.splits == {"train": 4}


def test_an_old_list_of_bad_files_goes_when_they_are_right(source, bad, run, tmp_path):
    root = source({"a/1.jpg": picture(1), "b/2.jpg": b"no image"})
    bad(f"--source={root}", "--name=x", said="^1 of", left=["x/rejected.csv"])
    (root / "b" / "2.jpg").write_bytes(picture(2))
    run(root, name="x")
    assert os.listdir(tmp_path / "data" / "x") == ["1.0.0"]


def test_names_that_cannot_be_printed_are_listed_and_shown(source, run, capsys, command):
    odd = os.fsdecode(b"a/\xff\n.jpg")
    root = source({"a/1.jpg": picture(1), "b/2.jpg": picture(1), odd: b"", "b/3.jpg": b""})
    folder = run(root, "--max_bad=2")
    assert set(rejected(folder.parent / "rejected.csv")) == {odd, "b/3.jpg"}
    assert r"'a/\udcff\n.jpg'" in capsys.readouterr().out
    again = source({odd: picture(1), "b/2.jpg": picture(2)})
    arguments = f"--source={again}", "--name=y", f"--data_dir={folder.parent.parent}"
    done = command("prepare", *arguments, "--max_bad=2", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\udcff" in done.stdout


def test_what_a_person_should_know_is_said(source, run, capsys):
    files = {f"train/a/{k}.jpg": picture(k) for k in range(12)}
    files |= {"train/b/1.jpg": picture(50), "val/a/copy.jpg": picture(3)}
    root = source(files)
    (root / "train" / "c").mkdir()
    run(root)
    notes = [line for line in capsys.readouterr().out.splitlines() if "note: " in line]
    assert notes == [
        "note: train has no image of c",
        "note: train is unbalanced: 12 of a, 1 of b; see data.balance",
        "note: val has no image of b, c",
        "note: 1 images are in train and in val, such as train/a/3.jpg and"
        " val/a/copy.jpg: scores on val will be too good",
    ]
    run(source({}) / "val", name="one")
    assert "note: only one class, a: there is nothing" in capsys.readouterr().out


def test_shrink_re_encodes_what_is_larger_and_says_so(source, run):
    large, small = picture(1, "PNG", height=90, width=120), picture(2)
    folder = run(source({"a/large.png": large, "b/s.jpg": small}), "--shrink=30")
    assert sources.manifest(folder)["shrink"] == {"short": 30, "quality": 95}
    rows = table(folder)["train"]
    assert rows["a/large.png"][0].shape == (30, 40, 3)
    expected = Image.fromarray(pixels(1, 90, 120)).resize(
        (40, 30), Image.Resampling.BICUBIC
    )
    assert np.abs(rows["a/large.png"][0] - np.asarray(expected).astype(int)).mean() < 4
    assert rows["b/s.jpg"][0].shape == (20, 24, 3)
    worse = run(source({}), "--shrink=30", "--quality=20", name="worse")
    assert sources.manifest(worse)["shrink"] == {"short": 30, "quality": 20}
    sizes = [sources.manifest(f)["shards"]["train"][0]["bytes"] for f in (folder, worse)]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, r"holds no file; give a folder of class folders of images"),
        ({"a\nb/1.jpg": picture(1)}, r"class 'a\\nb' has a name with other than printable"),
        ({" a/1.jpg": picture(1)}, r"class ' a' has a name with"),
        (
            {os.fsdecode(b"\xff/1.jpg"): picture(1)},
            r"class '\\udcff' has a name with other",
        ),
        ({"labels.csv": b"file,class\n"}, r"labels.csv has the columns file, class; its"),
    ],
)
def test_bad_sources(source, bad, files, said):
    root = source(files)
    root.mkdir(exist_ok=True)
    bad(f"--source={root}", "--name=x", said=said)


def test_archives_that_are_empty_or_cut(bad, tmp_path):
    files = photos()
    empty = [tar(tmp_path / "empty.tar", {}), tar(tmp_path / "empty.tgz", {}, mode="w:gz")]
    for path in (*empty, packed(tmp_path / "empty.zip", {})):
        bad(f"--source={path}", "--name=x", said=r"empty.\w+ holds no file; give a folder")
    cut = [tar(tmp_path / "a.tar", files), tar(tmp_path / "a.tgz", files, mode="w:gz")]
    for path in (*cut, packed(tmp_path / "a.zip", files)):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        bad(f"--source={path}", "--name=x", said=rf"{path} is (cut short or )?damaged \(")


def test_a_damaged_member_of_a_zip_is_listed(run, bad, tmp_path):
    path = packed(tmp_path / "a.zip", {"a/1.png": picture(1), "b/2.png": picture(2)}, (), 0)
    data = bytearray(path.read_bytes())
    data[data.index(picture(2)) + 99] ^= 1
    path.write_bytes(data)
    said = r"such as b/2.png: cannot be unpacked \(Bad CRC-32"
    bad(f"--source={path}", "--name=x", said=said, left=["x/rejected.csv"])
    assert zipfile.ZipFile(path).testzip() == "b/2.png"
    assert set(table(run(path, "--max_bad=1", name="x"))["train"]) == {"a/1.png"}


def test_a_split_whose_files_are_all_bad_is_refused(source, bad):
    root = source({"train/a/1.jpg": picture(1), "val/a/2.jpg": b""})
    bad(
        f"--source={root}", "--name=x", "--max_bad=9",
        said=r"no image of split val can be used", left=["x/rejected.csv"],
    )  # fmt: skip


def test_a_dataset_that_is_there_is_kept(source, run, tmp_path):
    root = source(photos())
    before = files_of(run(root))
    with pytest.raises(InputError, match=r"photos/1.0.0 exists; give another --name, or"):
        commands.main(
            ["prepare", f"--source={root}", "--name=photos", f"--data_dir={tmp_path}/data"]
        )
    assert files_of(tmp_path / "data" / "photos" / "1.0.0") == before


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


def test_a_full_disk_is_one_line_and_leaves_nothing(source, bad, monkeypatch):
    class Full:
        def __init__(self, *_):
            pass

        def write(self, _):
            raise RuntimeError("No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(writer, "ArrayRecordWriter", Full)
    said = r"cannot be written \(No space left on device\); make room, or give another"
    bad(f"--source={source(photos())}", "--name=x", said=said)


def test_a_file_that_cannot_be_read_is_listed(source, bad, monkeypatch, tmp_path):
    root = source({"a/1.jpg": picture(1), "b/2.jpg": picture(2)})
    real = os.stat

    def fail(path, *args, **options):
        if str(path).endswith("2.jpg"):
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *args, **options)

    monkeypatch.setattr(os, "stat", fail)
    said = r"such as b/2.jpg: Input/output error"
    bad(f"--source={root}", "--name=x", said=said, left=["x/rejected.csv"])


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
    assert done.stdout.endswith("class folders, 2 classes, train=20\n")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert os.listdir(tmp_path / "data") == []
