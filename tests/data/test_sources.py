"""Datasets on disk: what is read, and what a wrong one says."""

import io
import json
import pathlib
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from jaxcls.data import batches, decode, sources, splits
from jaxcls.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SPLITS = {"train": 1437, "test": 360}


def records(source):
    return list(source.read(np.arange(len(source))))


def copy(data_dir, root, name, version="1.0.0"):
    """The prepared digits under another name or version -> their folder."""
    return shutil.copytree(data_dir / "digits/1.0.0", root / name / version)


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def digits(data_dir):
    return sources.Dataset("digits", str(data_dir))


def test_digits_are_scikit_learns_pixels_each_in_exactly_one_split(digits):
    def unscaled(split):
        for png, label in records(digits.source(split, "data.train")):
            pixels = np.asarray(Image.open(io.BytesIO(png))).astype(float)
            yield np.rint(pixels * 16 / 255).tobytes(), label

    ours = load_digits()
    expected = Counter(
        (x.tobytes(), int(y)) for x, y in zip(ours.images, ours.target, strict=True)
    )
    train, test = Counter(unscaled("train")), Counter(unscaled("test"))
    assert (train.total(), test.total()) == (1437, 360)
    assert train + test == expected


def test_facts_are_those_of_the_folder(digits):
    names = tuple("0123456789")
    assert digits.facts == sources.Facts("digits", "1.0.0", (8, 8, 1), 10, names, SPLITS)


def test_preparing_and_reading_import_no_tensorflow(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise RuntimeError('TensorFlow imported')")
    code = (
        "import sys, numpy; from jaxcls.data import sources;"
        f" s = sources.Dataset('digits', {str(tmp_path)!r}).source('train', 'k');"
        " assert len(list(s.read(numpy.arange(3)))) == 3;"
        " assert 'tensorflow' not in sys.modules"
    )
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.slow
def test_processes_that_prepare_at_the_same_moment_all_succeed(tmp_path):
    code = (
        "import sys; from jaxcls.data import sources; print('up', flush=True); input();"
        f" print(sources.Dataset('digits', {str(tmp_path)!r}).facts.splits)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) for _ in range(2)
    ]
    assert [p.stdout.readline() for p in both] == ["up\n", "up\n"]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        assert str(SPLITS) in process.communicate(timeout=60)[0]
        assert process.returncode == 0


@pytest.mark.parametrize("split", ["train[33%:67%]", "train[-5:]", "test+train[:3]", "all"])
def test_a_split_holds_the_records_that_tfds_gives_for_it(digits, data_dir, split):
    builder = tfds.builder_from_directory(data_dir / "digits/1.0.0")
    decoders = {"image": tfds.decode.SkipDecoding()}
    names = ["train", "test"] if split == "all" else split.split("+")
    theirs = [x for name in names for x in builder.as_data_source(name, decoders=decoders)]
    ours = records(digits.source(split, "data.train"))
    assert ours == [(x["image"], x["label"]) for x in theirs]
    assert splits.count(split, SPLITS, "data.train") == len(theirs)


@pytest.mark.parametrize("name", ["manifest.json", "dataset_info.json", "features.json"])
def test_a_damaged_description_is_named(data_dir, tmp_path, name):
    (copy(data_dir, tmp_path, "mine") / name).write_text("{")
    with pytest.raises(InputError, match=r"1\.0\.0/\S+ (is damaged|cannot be read)"):
        sources.Dataset("mine", str(tmp_path))


@pytest.mark.parametrize("change", [{"files": []}, {"files": 7}, {"fingerprint": [1]}])
def test_a_manifest_of_another_form_is_damaged(data_dir, tmp_path, change):
    file = copy(data_dir, tmp_path, "mine") / "manifest.json"
    file.write_text(json.dumps(change))
    with pytest.raises(InputError, match=r"manifest\.json is damaged \("):
        sources.Dataset("mine", str(tmp_path))


@pytest.mark.parametrize("template", ["{DATASET}-{SPOF_Y}", "{DATASET}}", "{}"])
def test_a_description_whose_files_have_no_names_is_damaged(data_dir, tmp_path, template):
    file = copy(data_dir, tmp_path, "mine") / "dataset_info.json"
    info = json.loads(file.read_text())
    info["splits"][0]["filepathTemplate"] = template
    file.write_text(json.dumps(info))
    with pytest.raises(InputError, match=r"dataset_info\.json is damaged \("):
        sources.Dataset("mine", str(tmp_path)).source("train", "data.train")


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (
            "dataset_info.json",
            lambda info: info.update(fileFormat="tfrecord"),
            "data.name=digits: FOLDER is in tfrecord and must be array_record; .*jaxcls"
            " prepare --source=FOLDER --name=digits --data_dir=NEW_DIR",
        ),
        (
            "dataset_info.json",
            lambda info: info["splits"][0].update(shardLengths=["1427"]),
            "split train holds 1427 examples, and 1437 were published",
        ),
        (
            "features.json",
            lambda content: content["featuresDict"]["features"].pop("label"),
            "'digits' is not a classification dataset: its features are image, and an",
        ),
    ],
)
def test_an_unfit_dataset_is_refused(data_dir, tmp_path, file, change, said):
    folder = copy(data_dir, tmp_path, "digits")
    edit(folder / file, change)
    with pytest.raises(InputError, match=said.replace("FOLDER", str(folder))):
        sources.Dataset("digits", str(tmp_path))


def test_damaged_labels_are_named(data_dir, tmp_path):
    folder = copy(data_dir, tmp_path, "mine")
    (folder / "labels-train.npy").write_bytes(b"\x93NUMPY\x01")
    data = sources.Dataset("mine", str(tmp_path))
    with pytest.raises(InputError, match=r"labels-train\.npy is damaged"):
        data.labels("train", "data.train")
    head = b"\x93NUMPY\x01\x00\x10\x00{'descr': (\0      "
    (folder / "labels-train.npy").write_bytes(head)
    with pytest.raises(InputError, match=r"labels-train\.npy is damaged"):
        data.labels("train", "data.train")
    np.save(folder / "labels-train.npy", np.zeros(3, np.int32))
    with pytest.raises(InputError, match=r"\(3,\) labels for 1437 examples"):
        data.labels("train", "data.train")


@pytest.mark.parametrize("damage", ["flip", "cut", "block"])
def test_a_damaged_shard_is_named_with_its_record(data_dir, tmp_path, damage):
    folder = copy(data_dir, tmp_path, "mine")
    (shard,) = folder.glob("*train*")
    content = bytearray(shard.read_bytes())
    if damage == "flip":
        for place in range(70_000, len(content) - 70_000, 50):
            content[place] ^= 255
    else:
        content = content[: 65536 if damage == "block" else len(content) // 3]
    shard.write_bytes(content)
    source = sources.Dataset("mine", str(tmp_path)).source("train[10:]", "data.train")
    with pytest.raises(InputError) as raised:
        records(source)
    said = re.match(
        r"record (\d+) of split 'train\[10:\]' \(record (\d+) of (\S+)\) cannot be read: a"
        r" shard is damaged",
        str(raised.value),
    )
    assert int(said[2]) == int(said[1]) + 10
    assert said[3] == shard.name


def test_other_data_than_before_are_refused_by_what_changed(digits):
    facts = digits.facts
    sources.check_same(facts, facts._replace(fingerprint="sha256:now known"))
    sources.check_same(facts._replace(version="0.9.0"), facts)
    for change in (
        {"splits": {"train": 1436, "test": 360}},
        {"class_names": tuple("abcdefghij")},
        {"num_classes": 11},
        {"image_shape": (9, 8, 1)},
    ):
        with pytest.raises(InputError, match=rf"{next(iter(change))} was .* and is "):
            sources.check_same(facts, facts._replace(**change))
    one, other = (facts._replace(fingerprint=f"sha256:{i}") for i in range(2))
    with pytest.raises(InputError, match="fingerprint was sha256:0 and is sha256:1"):
        sources.check_same(one, other)


def test_many_open_files_are_allowed(digits):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft >= min(hard, 10_240)


def test_labels_are_read_where_prepare_did_not_write_them(digits, capsys, monkeypatch):
    monkeypatch.setattr(sources, "_MANY", 300)
    labels = digits.labels("test[10:]+train[:5]", "data.train")
    source = digits.source("test[10:]+train[:5]", "data.train")
    assert labels.tolist() == [label for _, label in records(source)]
    assert "prepare writes them" in capsys.readouterr().out


def test_a_record_is_called_by_its_number_in_its_split(digits):
    source = digits.source("test[10:]", "data.test")
    file = "digits-test.array_record-00000-of-00001"
    assert source.where(3) == f"record 3 of split 'test[10:]' (record 13 of {file})"
    part = source.select(np.array([7, 2, 9]))
    assert len(part) == 3
    assert part.where(2) == f"record 9 of split 'test[10:]' (record 19 of {file})"
    assert list(part.read(np.array([1, 0]))) == list(source.read(np.array([2, 7])))


def test_an_absent_dataset_says_how_to_get_it(tmp_path, data_dir):
    with pytest.raises(InputError) as refused:
        sources.Dataset("cifar10", str(data_dir))
    said = str(refused.value)
    assert f"data.name='cifar10' is not prepared in {data_dir}" in said
    assert "download cifar-10-python.tar.gz" in said
    assert f"jaxcls prepare --source=FOLDER --name=cifar10 --data_dir={data_dir}" in said
    assert said.endswith("prepared there: digits")
    with pytest.raises(InputError, match=r"https://image-net\.org"):
        sources.Dataset("imagenet2012", str(tmp_path))


NAMES = ("../x", "a/b/c", "", "a b", "..", "/x")


@pytest.mark.parametrize(
    ("name", "data_dir", "said"),
    [
        *((name, "", f"data.name={name!r} is not 'name[/config]") for name in NAMES),
        ("digits", "gs://b/x", "data.dir=gs://b/x is a URL, and must be a folder"),
        ("cifar1O", ".", "did you mean 'cifar10"),
    ],
)
def test_a_name_or_a_folder_that_is_none_is_refused(name, data_dir, said):
    with pytest.raises(InputError, match=re.escape(said)):
        sources.Dataset(name, data_dir)


def test_the_newest_version_is_read_unless_one_is_named(data_dir, tmp_path):
    for version in ("1.9.0", "1.10.0"):
        folder = copy(data_dir, tmp_path, "mine", version)
        edit(folder / "dataset_info.json", lambda info, v=version: info.update(version=v))
    assert sources.Dataset("mine", str(tmp_path)).facts.version == "1.10.0"
    assert sources.Dataset("mine:1.9.0", str(tmp_path)).facts.version == "1.9.0"
    with pytest.raises(InputError, match=r"'mine:3\.0\.0'.* holds 1\.9\.0, 1\.10\.0"):
        sources.Dataset("mine:3.0.0", str(tmp_path))


def test_a_dataset_of_several_configs_asks_for_one(data_dir, tmp_path):
    copy(data_dir, tmp_path, "mine/small")
    copy(data_dir, tmp_path, "mine/large")
    assert sources.Dataset("mine/small", str(tmp_path)).facts.num_classes == 10
    with pytest.raises(InputError, match="one of: mine/large, mine/small"):
        sources.Dataset("mine", str(tmp_path))


def test_a_missing_shard_is_named_when_its_split_is_opened(data_dir, tmp_path):
    shard = copy(data_dir, tmp_path, "mine") / "digits-test.array_record-00000-of-00001"
    shard.unlink()
    dataset = sources.Dataset("mine", str(tmp_path))
    assert len(dataset.source("train", "data.train")) == 1437
    said = re.escape(f"data.test='test[:5]': shard {shard} is missing")
    with pytest.raises(InputError, match=said):
        dataset.source("test[:5]", "data.test")


def test_a_shard_of_fewer_records_than_its_split_is_said(data_dir, tmp_path):
    folder = copy(data_dir, tmp_path, "mine")
    short, long = (
        folder / f"digits-{split}.array_record-00000-of-00001"
        for split in ("test", "train")
    )
    long.write_bytes(short.read_bytes())
    dataset = sources.Dataset("mine", str(tmp_path))
    for split, first in (("train", 0), ("train[300:]", 300), ("train[400:]", 400)):
        source = dataset.source(split, "data.train")
        plans = batches.eval_plans(len(source), 64, slice(0, 64))
        row = max(0, 360 - first)
        said = rf"^record {row} of split '{re.escape(split)}' .* cannot be read: a shard is"
        with pytest.raises(InputError, match=said):
            list(batches.decoded(source, [decode.decode(1)], plans, seed=0, threads=1))


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    said = rf"data.dir={tmp_path}/file/below: digits cannot be written .*config.data.dir=D"
    with pytest.raises(InputError, match=said):
        sources.Dataset("digits", str(tmp_path / "file/below"))


def test_published_counts_stand_in_for_data_that_are_not_here(digits):
    known = sources.published_facts("digits")
    assert known.splits == digits.facts.splits
    assert known.image_shape == digits.facts.image_shape
    assert sources.published_facts("imagenet2012:5.1.0").num_classes == 1000
    assert sources.published_facts("nothing") is None
