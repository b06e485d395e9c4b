"""Tars in ILSVRC2012's own layout, packed by tarfile: each image back, by its place."""

import io
import os
import tarfile

import numpy as np
import pytest
from scipy.io import savemat

from jaxcls.data.importers import open_source
from jaxcls.data.importers.imagenet import imagenet
from jaxcls.errors import InputError
from tests.archives import member, tar
from tests.images import write

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
WNIDS = ["n02119789", "n01440764", "n03000001"]  # In the order of ILSVRC2012_ID.
SORTED = ["n01440764", "n02119789", "n03000001"]
RANDOM = np.random.default_rng(0)

# Sizes about the 512 bytes of a block, and an image that looks like the end of a tar.
CONTENTS = {
    "n02119789": {f"n02119789_{k}.JPEG": RANDOM.bytes(k) for k in (511, 9, 100)},
    "n01440764": {f"n01440764_{k}.JPEG": RANDOM.bytes(k) for k in (512, 513)},
    "n03000001": {"n03000001_1.JPEG": bytes(2048), "n03000001_2.JPEG": b"\1"},
}
TRUTH = [3, 1, 2, 2]
VALS = {f"ILSVRC2012_val_{k:08}.JPEG": RANDOM.bytes(700 * k) for k in (1, 2, 3, 4)}


def train_tar(contents=CONTENTS, extra=()):
    return tar({f"{wnid}.tar": tar(files) for wnid, files in contents.items()}, extra)


def meta(wnids=WNIDS):
    """meta.mat: a struct array, the synsets with images first and those above after."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children")
    kinds = [(name, object) for name in (*fields, "wordnet_height", "num_train_images")]
    rows = [
        (float(k), wnid, f"word {k}", "a gloss", 0.0, np.zeros((0, 0)), 0.0, 1300.0)
        for k, wnid in enumerate(wnids, 1)
    ]
    above = len(wnids) + 1
    rows.append((float(above), "n00001740", "entity", "", 2.0, [1.0, 2.0], 19.0, 0.0))
    out = io.BytesIO()
    savemat(out, {"synsets": np.array([[row] for row in rows], kinds)})
    return out.getvalue()


def fatal():
    data = bytearray(meta())
    data[1097] = 16
    return bytes(data)


def devkit(mat=None, truth=None, root="ILSVRC2012_devkit_t12"):
    files = {
        f"{root}/readme.txt": b"read me",
        f"{root}/data/ILSVRC2012_validation_ground_truth.txt": truth,
        f"{root}/data/meta.mat": mat,
    }
    return tar({n: data for n, data in files.items() if data is not None}, mode="w:gz")


def lines(truth):
    return "".join(f"{number}\n" for number in truth).encode()


@pytest.fixture
def source(tmp_path):
    """``source(**{VAL: None})`` -> a folder with all three files, some replaced."""
    whole = {TRAIN: train_tar(), VAL: tar(VALS), DEVKIT: devkit(meta(), lines(TRUTH))}
    return lambda **replaced: write(
        tmp_path, {n: data for n, data in (whole | replaced).items() if data is not None}
    )


def check_train(listing, class_names):
    expected = {
        f"{wnid}/{name}".encode(): (class_names.index(wnid), data)
        for wnid, files in CONTENTS.items()
        for name, data in files.items()
    }
    assert listing.names.tolist() == sorted(expected)
    for i, name in enumerate(listing.names):
        assert (listing.labels[i], listing.read(i)) == expected[name]


def check_val(listing):
    assert listing.names.tolist() == [name.encode() for name in VALS]
    assert [SORTED[label] for label in listing.labels] == [WNIDS[n - 1] for n in TRUTH]
    assert [listing.read(i) for i in range(4)] == list(VALS.values())


CHECKS = {"train": lambda listing: check_train(listing, SORTED), "validation": check_val}


def listed(path):
    return open_source(path, path, 0)


def test_all_three_files_give_both_splits(source):
    # The label of a val image is by its number, whatever its place.
    path = source(**{VAL: tar(dict(reversed(VALS.items())))})
    before = set(os.listdir(path))
    found = open_source(path, path.parent, 0)
    assert found.class_names == tuple(SORTED)
    assert (found.channels, found.rejected, found.notes) == (3, [], [])
    assert list(found.splits) == ["train", "validation"]
    for split, listing in found.splits.items():
        CHECKS[split](listing)
        assert listing.labels.dtype == np.int32
        assert listing.names.dtype.kind == "S"
    assert set(os.listdir(path)) == before


@pytest.mark.parametrize(
    ("split", "missing"),
    [("train", {"validation": VAL, "": DEVKIT}), ("validation", {"train": TRAIN})],
)
def test_one_tar_alone_is_enough(source, split, missing):
    path = source(**dict.fromkeys(missing.values()))
    found = listed(path)
    assert found.class_names == tuple(SORTED)
    (other, name), *_ = missing.items()
    assert found.notes == [f"there is no split {other}: {name} is not in {path}"]
    assert list(found.splits) == [split]
    CHECKS[split](found.splits[split])


def test_no_header_is_kept_while_indexing(source, monkeypatch):
    most = []
    following = tarfile.TarFile.next

    def counting(self):
        found = following(self)
        most.append(len(self.members))
        return found

    monkeypatch.setattr(tarfile.TarFile, "next", counting)
    files = {f"n01440764_{k}.JPEG": b"x" for k in range(500)}
    path = source(**{TRAIN: train_tar({"n01440764": files}), VAL: None})
    assert len(listed(path).splits["train"].names) == 500
    assert len(most) > 500
    assert max(most) <= 2


def test_what_is_not_safe_to_name_is_rejected(source):
    strange = [
        member("n02119789_7.JPEG", kind=tarfile.SYMTYPE, target="/etc/passwd"),
        member("../n02119789_1.JPEG", 5),
        member("folder", kind=tarfile.DIRTYPE),
    ]
    inner = {f"{wnid}.tar": tar(files) for wnid, files in CONTENTS.items()}
    inner["n02119789.tar"] = tar(CONTENTS["n02119789"], strange)
    outer = [
        member("n09999999.tar", kind=tarfile.SYMTYPE, target="n01440764.tar"),
        member("../n01440764.tar", 512),
        member("notes.txt", 5),
        member("n1.tar", 5),
        member("n01440999/a.JPEG", 5),
    ]
    path = source(**{TRAIN: tar(inner, outer), VAL: tar(VALS, [member("x.JPEG", 1)])})
    found = listed(path)
    for split, listing in found.splits.items():
        CHECKS[split](listing)
    link = "a link; archives are read without following any"
    out = "its path leads out of the archive"
    other = "not the tar of a class, such as n01440764.tar"
    assert sorted(found.rejected) == sorted(
        [
            ("n02119789/n02119789_7.JPEG", link),
            ("n02119789/../n02119789_1.JPEG", out),
            ("n09999999.tar", link),
            ("../n01440764.tar", out),
            ("notes.txt", other),
            ("n1.tar", other),
            ("n01440999/a.JPEG", other),
            ("x.JPEG", "not named as ILSVRC2012_val_00000001.JPEG"),
        ]
    )


def test_other_things_are_no_imagenet(tmp_path):
    (tmp_path / "images.tar").write_bytes(tar({"cats/1.jpg": b""}))
    for path in (tmp_path, *tmp_path.iterdir(), tmp_path / "nowhere"):
        assert imagenet(path, tmp_path) is None


def damaged(data, place):
    return data[:place] + b"\xff" * 512 + data[place + 512 :]


CLASS = tar(CONTENTS["n02119789"])


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({DEVKIT: None}, f"{DEVKIT} is missing, and labels the val images; download it"),
        ({DEVKIT: b"no archive"}, f"{DEVKIT} is no folder and no archive; give a folder,"),
        ({DEVKIT: devkit(meta(), lines(TRUTH))[:200]}, f"{DEVKIT} is damaged ("),
        ({DEVKIT: devkit(meta())}, "lacks data/ILSVRC2012_validation_ground_truth.txt"),
        ({DEVKIT: devkit(None, lines(TRUTH))}, f"{DEVKIT} lacks data/meta.mat"),
        ({DEVKIT: devkit(b"no mat", lines(TRUTH))}, "data/meta.mat is damaged ("),
        # SciPy dies of this size.
        (
            {DEVKIT: devkit(fatal(), lines(TRUTH))},
            "data/meta.mat is damaged (",
        ),
        ({DEVKIT: devkit(meta(WNIDS * 2), b"")}, "meta.mat names no class, or one twice"),
        ({DEVKIT: devkit(meta(), b"1\n4\n")}, "ground_truth.txt:2 is '4', no class"),
        ({DEVKIT: devkit(meta(), b"\xff\xd8")}, "ground_truth.txt:1 is "),
        ({DEVKIT: devkit(meta(), b"1 2 3 1 1")}, "t12.tar.gz labels 5, numbered from 1"),
        ({DEVKIT: devkit(meta(WNIDS[:2]), b"1")}, "3 classes, and ILSVRC2012_devkit_t12"),
        ({DEVKIT: devkit(meta([*WNIDS, "n07"]), b"1")}, "names 4: n07 is in one only"),
        ({VAL: tar(VALS)[:-10240]}, f"{VAL} is cut short or damaged ("),
        ({TRAIN: tar({})}, f"{TRAIN} holds no tar such as n01440764.tar"),
        ({TRAIN: train_tar({w: {} for w in WNIDS})}, f"{TRAIN} holds no image"),
        ({TRAIN: b""}, f"{TRAIN} is cut short or damaged ("),
        ({TRAIN: tar({"n02119789.tar": b"text"})}, f"{TRAIN}: n02119789.tar is cut"),
        (
            {TRAIN: tar({"n02119789.tar": damaged(CLASS, 1024)})},
            f"{TRAIN}: n02119789.tar is cut short or damaged (no file and no end at byte",
        ),
        (
            {TRAIN: tar({"n02119789.tar": CLASS[:700]})},
            f"{TRAIN}: n02119789.tar is cut short or damaged (unexpected end of data)",
        ),
    ],
)
def test_a_fault_is_named(source, replaced, said):
    path = source(**replaced)
    with pytest.raises(InputError) as refused:
        listed(path)
    text = str(refused.value)
    assert said in text
    assert text.startswith(str(path))
    assert "\n" not in text


def test_a_nested_tar_may_end_without_zeros(source):
    with tarfile.open(fileobj=io.BytesIO(CLASS)) as archive:
        last = archive.getmembers()[-1]
    inner = {f"{wnid}.tar": tar(files) for wnid, files in CONTENTS.items()}
    inner["n02119789.tar"] = CLASS[: last.offset_data + 512]
    found = listed(source(**{TRAIN: tar(inner)}))
    check_train(found.splits["train"], SORTED)


def test_a_file_that_shrinks_after_indexing_is_an_os_error(source):
    path = source()
    listing = listed(path).splits["validation"]
    os.truncate(path / VAL, 2000)
    assert listing.read(0) == VALS["ILSVRC2012_val_00000001.JPEG"]
    with pytest.raises(OSError, match="of 2800 bytes are left in the tar"):
        listing.read(3)
