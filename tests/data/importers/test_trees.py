"""Folders, tars and zips as one thing, against tarfile, zipfile and the system's tools."""

import bz2
import gzip
import io
import os
import re
import shutil
import struct
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest

from jaxcls.data import files as files_module
from jaxcls.data.decode import DecodeError
from jaxcls.data.importers import open_source
from jaxcls.data.importers.trees import open_tree
from jaxcls.errors import InputError
from tests import archives
from tests.archives import member
from tests.images import write

RANDOM = np.random.default_rng(0)
FILES = {
    "train/cats/1.jpg": RANDOM.bytes(511),
    "train/cats/2 of, 3.JPG": RANDOM.bytes(512),
    "train/dogs/naïve/☃.png": RANDOM.bytes(2000),
    "train/dogs/10.png": b"",
    "val/cats/a\\b.jpg": RANDOM.bytes(3),
    "labels.txt": b"text",
}
LONG = {f"train/{'c' * 90}/{'f' * 90}-{k}.png": RANDOM.bytes(9) for k in range(3)}


def tar(path, files, extra=(), mode="w", form=tarfile.PAX_FORMAT):
    path.write_bytes(archives.tar(files, extra, mode, form))
    return path


def packed(path, files, extra=(), method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for info in extra:
            archive.writestr(info, b"target")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def contents(tree):
    return {os.fsdecode(name): tree.read(i) for i, name in enumerate(tree.names)}


def refused(path, tmp_path, said):
    with pytest.raises(InputError, match=said) as caught:
        open_tree(path, tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


KINDS = {
    "folder": lambda path, files: write(path / "some", files),
    "tar": lambda path, files: tar(path / "some.tar", files),
    "gnu": lambda path, files: tar(path / "gnu", files, form=tarfile.GNU_FORMAT),
    "tgz": lambda path, files: tar(path / "some.tgz", files, mode="w:gz"),
    "bz2": lambda path, files: tar(path / "some.tar.bz2", files, mode="w:bz2"),
    "xz": lambda path, files: tar(path / "some.tar.xz", files, mode="w:xz"),
    "zip": lambda path, files: packed(path / "some.zip", files),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_sorted_files(tmp_path, kind):
    files = {**FILES, **LONG}
    tree = open_tree(KINDS[kind](tmp_path, files), tmp_path)
    assert contents(tree) == files
    assert tree.names.tolist() == sorted(os.fsencode(name) for name in files)
    assert tree.rejected == []


def test_the_tools_of_the_system_are_understood(tmp_path):
    root = write(tmp_path / "some", FILES)
    (root / "train" / "empty").mkdir()
    subprocess.run(["tar", "cf", "../a.tar", "."], cwd=root, check=True)
    subprocess.run(["tar", "czf", "../a.tgz", *os.listdir(root)], cwd=root, check=True)
    archives = ["some", "a.tar", "a.tgz"]
    if shutil.which("zip"):
        subprocess.run(["zip", "-qr", "../a.zip", "."], cwd=root, check=True)
        archives.append("a.zip")
    for archive in archives:
        tree = open_tree(tmp_path / archive, tmp_path)
        assert contents(tree) == FILES
        assert set(tree.folders) >= {b"train", b"train/cats", b"train/empty", b"val/cats"}
        assert tree.rejected == []


def test_names_need_not_be_unicode(tmp_path):
    files = {os.fsdecode(name): name for name in (b"a/\xff\xfe.png", b"a/\nb.png")}
    expected = open_tree(write(tmp_path / "some", files), tmp_path)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
            archive.add(tmp_path / "some", ".")
        tree = open_tree(tmp_path / "a.tar", tmp_path)
        assert contents(tree) == contents(expected) == files
        assert tree.names.tolist() == expected.names.tolist()


def unflagged(data, name):
    """A zip whose names are not said to be UTF-8, as some tools write them."""
    at = 0
    while (at := data.find(name, at)) >= 0:
        start = max(data.rfind(b"PK\3\4", 0, at), data.rfind(b"PK\1\2", 0, at))
        flags = start + (6 if data[start + 2] == 3 else 8)
        data = data[:flags] + b"\0\0" + data[flags + 2 :]
        at += 1
    return data


def test_a_zip_may_not_say_that_its_names_are_utf8(tmp_path):
    path = packed(tmp_path / "a.zip", {"naïve/☃.png": b"snow"})
    path.write_bytes(unflagged(path.read_bytes(), "naïve/☃.png".encode()))
    assert zipfile.ZipFile(path).namelist() != ["naïve/☃.png"]
    tree = open_tree(path, tmp_path)
    assert contents(tree) == {"naïve/☃.png": b"snow"}
    assert tree.notes == []


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("gbk", "狗/1.png"), ("cp1252", "é/1.png"), ("cp866", "Жук/1.png")],
)
def test_names_in_a_zip_that_are_not_utf8_are_said(tmp_path, encoding, name):
    stand_in = "x" * len(name.encode(encoding))
    path = packed(tmp_path / "a.zip", {stand_in: b"1", "dog/2.png": b"2", ".é": b"3"})
    path.write_bytes(path.read_bytes().replace(stand_in.encode(), name.encode(encoding)))
    tree = open_tree(path, tmp_path)
    seen = name.encode(encoding).decode("cp437")
    assert contents(tree) == {seen: b"1", "dog/2.png": b"2"}
    assert tree.notes == [
        f"1 names in a.zip are not UTF-8, and are read as code page 437, such as {seen}; if"
        " they look wrong, give the unpacked folder"
    ]
    found = open_source(path, tmp_path, 0)
    assert set(found.class_names) == {seen.split("/")[0], "dog"}
    assert found.notes == tree.notes


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_paths_are_made_plain(tmp_path, kind):
    files = {"./a/1": b"1", "a//2": b"2", "b/./3": b"3"}
    tree = open_tree(KINDS[kind](tmp_path, files), tmp_path)
    assert contents(tree) == {"a/1": b"1", "a/2": b"2", "b/3": b"3"}


HIDDEN = [".DS_Store", "a/.x.png", "__MACOSX/a/._1.png", "a/Thumbs.db", ".git/1.png"]


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_what_systems_leave_behind_is_left_out(tmp_path, kind):
    files = {"a/1.png": b"1", **dict.fromkeys(HIDDEN, b"x")}
    tree = open_tree(KINDS[kind](tmp_path, files), tmp_path)
    assert contents(tree) == {"a/1.png": b"1"}
    assert tree.folders in ([], [b"a"])


OUTSIDE = ["../1.png", "a/../../2.png", "/etc/3.png", "..\\4.png", "\\5.png"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_that_lead_out_are_refused(tmp_path, kind):
    files = {"a/1.png": b"1", **dict.fromkeys(OUTSIDE, b"x")}
    tree = open_tree(KINDS[kind](tmp_path, files), tmp_path)
    assert contents(tree) == {"a/1.png": b"1"}
    reason = "its path leads out of the archive"
    assert sorted(tree.rejected) == sorted((name, reason) for name in OUTSIDE)


def test_links_in_archives_are_refused(tmp_path):
    kinds = {
        "a/sym": tarfile.SYMTYPE, "a/hard": tarfile.LNKTYPE,
        "a/fifo": tarfile.FIFOTYPE, "a/dev": tarfile.CHRTYPE,
    }  # fmt: skip
    extra = [member(name, kind=kind, target="1.png") for name, kind in kinds.items()]
    tree = open_tree(tar(tmp_path / "a.tar", {"a/1.png": b"1"}, extra), tmp_path)
    assert contents(tree) == {"a/1.png": b"1"}
    assert tree.rejected == [
        ("a/sym", "a link; archives are read without following any"),
        ("a/fifo", "not a regular file"),
        ("a/dev", "not a regular file"),
        ("a/hard", "a hard link to 1.png, which is no file of the archive"),
    ]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_hard_links_are_second_names_of_members(tmp_path, form, mode):
    root = write(tmp_path / "some", {"a/1.png": b"one", "b/2.png": b"two two"})
    for name, target in {"b/3.png": "a/1.png", "c.png": "b/2.png", "0": "a/1.png"}.items():
        os.link(root / target, root / name)
    with tarfile.open(tmp_path / "a", mode, format=form) as archive:
        archive.add(root, "./wrapper")
        kinds = {member.type for member in archive.getmembers()}
    assert tarfile.LNKTYPE in kinds
    tree = open_tree(tmp_path / "a", tmp_path)
    expected = contents(open_tree(root, tmp_path))
    assert contents(tree) == {f"wrapper/{name}": data for name, data in expected.items()}
    assert tree.rejected == []


def test_hard_links_before_their_member_of_one_another_and_out(tmp_path):
    links = {
        "late": "./a/1", "chain": "late", "../up": "a/1", ".hidden": "a/1", "a/1": "b/2",
        "loop": "loop", "out": "../a/1", "folder": "a",
    }  # fmt: skip
    extra = [member(name, 0, tarfile.LNKTYPE, target) for name, target in links.items()]
    files = {"a/1": b"one", "b/2": b"two"}
    tree = open_tree(tar(tmp_path / "a.tar", files, extra), tmp_path)
    assert contents(tree) == {**files, "late": b"one", "chain": b"one"}
    assert tree.rejected == [
        ("../up", "its path leads out of the archive"),
        *((name, f"a hard link to {links[name]}, which is no file of the archive")
          for name in ("loop", "out", "folder")),
        ("a/1", "the same path a second time"),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_second_member_of_a_name_is_refused(tmp_path, kind):
    files = {"a/1.png": b"one", "./a/1.png": b"two", "b/2.png": b"2"}
    tree = open_tree(KINDS[kind](tmp_path, files), tmp_path)
    assert contents(tree) == {"a/1.png": b"one", "b/2.png": b"2"}
    assert tree.rejected == [("a/1.png", "the same path a second time")]


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_a_file_over_the_limit_is_not_read(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(files_module, "MAX_BYTES", 10)
    tree = open_tree(KINDS[kind](tmp_path, {"a": bytes(10), "b": bytes(11)}), tmp_path)
    assert tree.read(0) == bytes(10)
    with pytest.raises(DecodeError, match="11 bytes, over the limit of 10"):
        tree.read(1)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "folder"])
def test_an_archive_cut_anywhere_is_named(tmp_path, kind):
    path = KINDS[kind](tmp_path, FILES)
    whole = path.read_bytes()
    tail = 1024 if kind in ("tar", "gnu") else 1  # A tar ends with zeros.
    for size in {600, len(whole) // 3, len(whole) // 2, len(whole.rstrip(b"\0")) - tail}:
        path.write_bytes(whole[:size])
        refused(path, tmp_path, r"(is|or) damaged \(")


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "folder"])
def test_a_damaged_archive_gives_files_or_a_reason(tmp_path, kind):
    path = KINDS[kind](tmp_path, FILES)
    whole = path.read_bytes()
    for _ in range(150):
        data = bytearray(whole)
        for place in RANDOM.integers(0, len(data), 3):
            data[place] = RANDOM.integers(256)
        path.write_bytes(data)
        try:
            tree = open_tree(path, tmp_path)
        except InputError:
            continue
        for i in range(len(tree.names)):
            try:
                tree.read(i)
            except (DecodeError, OSError):
                continue


def test_a_damaged_or_encrypted_file_in_a_zip_is_refused_alone(tmp_path):
    path = packed(tmp_path / "a.zip", {"a": b"first", "b": b"other", "c": b"third"}, (), 0)
    data = bytearray(path.read_bytes().replace(b"first", b"First", 1))
    data[data.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    tree = open_tree(path, tmp_path)
    assert tree.read(1) == b"other"
    for row, why in ((0, "Bad CRC-32"), (2, "File .* is encrypted")):
        with pytest.raises(DecodeError, match=rf"cannot be unpacked \({why}"):
            tree.read(row)


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    inner = packed(tmp_path / "a.zip", {"inside": b"x"}).read_bytes()
    assert zipfile.is_zipfile(io.BytesIO(inner))
    path = tar(tmp_path / "a.tar", {"1.png": b"1", "a.zip": inner})
    assert zipfile.is_zipfile(path)
    assert contents(open_tree(path, tmp_path)) == {"1.png": b"1", "a.zip": inner}


def test_a_tar_of_a_negative_size_ends(tmp_path):
    path = tar(
        tmp_path / "a.tar", {"1.png": b"1", "2.png": b"2"}, (), "w", tarfile.GNU_FORMAT
    )
    data = bytearray(path.read_bytes())
    data[124:136] = b"\xff" + struct.pack(">xxxq", -1024)
    data[148:156] = b" " * 8
    data[148:155] = b"%06o\0" % sum(data[:512])
    path.write_bytes(data)
    refused(path, tmp_path, r"cut short or damaged \(")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("notes.txt", b"plain text\n" * 100, "is no folder and no archive; give a folder"),
        ("photo.jpg.gz", gzip.compress(b"no tar" * 200, mtime=0), r"some|damaged \("),
        ("none.gz", gzip.compress(b"", mtime=0), r"damaged \(empty file"),
        ("a.bz2", bz2.compress(b"x" * 999)[:40] + b"!" * 99, r"damaged \("),
        ("a.xz", b"\xfd7zXZ\0" + b"?" * 99, r"damaged \("),
    ],
)
def test_what_is_no_archive_is_named(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    (tmp_path / "scratch").mkdir()
    assert "scratch" not in refused(tmp_path / name, tmp_path / "scratch", said)


def test_a_source_that_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "gone", tmp_path / "pipe", tmp_path / ("x" * 5000)):
        said = f"--source={path}"[:900]  # A long one is cut in its middle.
        with pytest.raises(InputError, match=rf"{re.escape(said)}.* is not there"):
            open_source(path, tmp_path, 0)


def test_a_source_that_may_not_be_read_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\); allow"):
        open_source(write(tmp_path / "some", FILES), tmp_path, 0)
