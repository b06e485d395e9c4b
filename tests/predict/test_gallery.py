"""A folder's features: which are computed, which are kept, and a file that is not right."""

import os
import pathlib
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxcls.data.files import Bad
from jaxcls.errors import InputError
from jaxcls.predict import gallery
from tests.images import write


def vector(data):
    return np.array([len(data), data[0], data[-1]], np.float32)


@pytest.fixture
def folder(tmp_path):
    files = {"b/z.png": b"z.", "a.jpg": b"a..", "b/c.png": b"c....", "notes.txt": b"none"}
    return write(tmp_path / "mine", files)


@pytest.fixture
def refresh(folder, tmp_path):
    """``refresh()`` -> (the gallery, what was computed, what was said).

    The features are of the content; that of "bad" has none.
    """

    def run(key="k", cache=tmp_path / "cache.npz"):
        computed, said = [], []

        def compute(paths):
            for path in list(paths):
                computed.append(os.path.basename(path))
                data = pathlib.Path(path).read_bytes()
                yield Bad(path, "no image") if data == b"bad" else vector(data)

        listing = gallery.listed(str(folder))
        found = gallery.refreshed(listing, cache, key, compute, said.append)
        for path, row in zip(found.paths, found.features, strict=True):
            np.testing.assert_array_equal(row, vector(pathlib.Path(path).read_bytes()))
        return found, sorted(computed), said

    return run


def counts(found):
    return [found.counts[kind] for kind in gallery.KINDS]


def names(found, folder):
    return [os.path.relpath(path, folder) for path in found.paths]


def test_only_what_is_new_or_changed_is_computed(refresh, folder, tmp_path):
    for change, new, changed, gone, kept, tried in (
        (lambda: None, 3, 0, 0, 0, ["a.jpg", "c.png", "z.png"]),
        (lambda: None, 0, 0, 0, 3, []),
        (lambda: write(folder, {"b/d.png": b"new"}), 1, 0, 0, 3, ["d.png"]),
        # As many bytes as before.
        (lambda: write(folder, {"b/c.png": b"other"}), 0, 1, 0, 3, ["c.png"]),
        (lambda: os.utime(folder / "a.jpg", ns=(1, 1)), 0, 1, 0, 3, ["a.jpg"]),
        (lambda: (folder / "a.jpg").rename(folder / "e.jpg"), 1, 0, 1, 3, ["e.jpg"]),
        (lambda: (folder / "b/z.png").unlink(), 0, 0, 1, 3, []),
    ):
        change()
        found, computed, said = refresh()
        assert (counts(found), computed, said) == ([new, changed, gone, kept], tried, [])
    assert names(found, folder) == ["b/c.png", "b/d.png", "e.jpg"]
    before = gallery._status(tmp_path / "cache.npz")
    refresh()
    # Nothing was written; only the time of access is another.
    assert gallery._status(tmp_path / "cache.npz") == before
    assert sorted(os.listdir(tmp_path)) == ["cache.npz", "mine"]


def test_other_content_with_the_old_size_and_time_is_seen(refresh, folder):
    refresh()
    old = (folder / "a.jpg").stat()
    (folder / "a.jpg").write_bytes(b"xyz")
    os.utime(folder / "a.jpg", ns=(old.st_atime_ns, old.st_mtime_ns))
    assert refresh()[1] == ["a.jpg"]


def test_a_bad_file_is_left_out_and_tried_each_time(refresh, folder):
    write(folder, {"b/bad.png": b"bad"})
    (folder / "gone.png").symlink_to("nowhere")
    for computed in (["a.jpg", "bad.png", "c.png", "z.png"], ["bad.png"]):
        found, tried, _ = refresh()
        assert tried == computed
        assert counts(found) == [len(tried) - 1, 0, 0, 4 - len(tried)]
        assert names(found, folder) == ["a.jpg", "b/c.png", "b/z.png"]
        assert [each.path[-8:] for each in found.bad] == ["gone.png", "/bad.png"]


def test_where_none_can_be_read_nothing_is_written(refresh, folder, tmp_path):
    for name in ("a.jpg", "b/c.png", "b/z.png"):
        (folder / name).write_bytes(b"bad")
    said = r"--gallery=.*mine: none of its 3 images can be read, .*z.png: no image$"
    with pytest.raises(InputError, match=said):
        refresh()
    assert os.listdir(tmp_path) == ["mine"]


def test_another_model_computes_all_anew(refresh):
    refresh()
    found, computed, said = refresh(key="another")
    assert (counts(found), len(computed)) == ([3, 0, 0, 0], 3)
    assert said[0].endswith("cache.npz is of another model or version; all are read anew")
    assert refresh(key="another")[1:] == ([], [])


@pytest.mark.parametrize("where", [0, 60, 200, -200, -30, -1])
def test_a_file_that_is_cut_is_said_and_made_again(refresh, tmp_path, where):
    refresh()
    cache = tmp_path / "cache.npz"
    cache.write_bytes(cache.read_bytes()[:where])
    _, computed, (said,) = refresh()
    assert len(computed) == 3
    assert re.search("is damaged .*; all are read anew$", said)
    assert refresh()[1:] == ([], [])


def test_a_file_without_its_times_is_said_and_made_again(refresh, tmp_path):
    refresh()
    with np.load(tmp_path / "cache.npz") as cache:
        left = {name: cache[name] for name in cache if name != "status"}
    np.savez(tmp_path / "cache.npz", **left)
    assert "is damaged" in refresh()[2][0]


def test_every_flipped_byte_of_the_features_is_seen(refresh, tmp_path):
    refresh()
    cache = tmp_path / "cache.npz"
    whole = cache.read_bytes()
    start = whole.index(vector(b"a..").tobytes())
    for i in range(start, start + 12):
        cache.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        assert "is damaged" in refresh()[2][0]


def test_the_file_of_something_else_is_not_replaced(refresh, tmp_path):
    mine = tmp_path / "features.npz"
    np.savez(mine, path=["a"], embed=np.ones((1, 3), np.float32))
    before = mine.read_bytes()
    with pytest.raises(InputError, match=r"holds something else .*; try --cache="):
        refresh(cache=mine)
    assert mine.read_bytes() == before


def test_a_file_that_cannot_be_written_is_one_line(refresh, tmp_path):
    said = r"no/x.npz cannot be written \(No such file or directory\); try --cache="
    with pytest.raises(InputError, match=said):
        refresh(cache=tmp_path / "no/x.npz")


def test_two_at_once_leave_a_whole_file(refresh, folder, tmp_path):
    write(folder, {f"{i}.png": bytes([i + 1] * (i + 1)) for i in range(40)})

    def run(_):
        for _ in range(5):
            refresh()
            os.utime(folder / "a.jpg")

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, range(3))) == [None] * 3
    found, computed, said = refresh()
    assert (len(found.paths), computed, said) == (43, ["a.jpg"], []) or computed == []
    assert sorted(os.listdir(tmp_path)) == ["cache.npz", "mine"]


def test_a_file_is_known_by_any_of_its_paths(refresh, folder, tmp_path):
    os.link(folder / "a.jpg", folder / "b/a2.jpg")
    (tmp_path / "link").symlink_to(folder)
    shutil.copy(folder / "a.jpg", tmp_path / "copy.jpg")
    found, _, _ = refresh()
    assert names(found, folder)[:2] == ["a.jpg", "b/a2.jpg"]
    assert found.rows_of(f"{folder}/b/a2.jpg") == [0, 1]
    assert found.rows_of(f"{tmp_path}/link/b/z.png") == [3]
    assert found.rows_of(f"{tmp_path}/copy.jpg") == []
    assert found.rows_of(f"{tmp_path}/gone.jpg") == []


def test_what_is_made_of_a_folder_is_none_of_its_images(folder):
    write(folder, {"b/search.png": b"a sheet", "search.png": b"an image"})
    found = gallery.listed(f"{folder}/", folder / "b/search.png").status
    assert list(found) == ["a.jpg", "b/c.png", "b/z.png", "search.png"]


@pytest.mark.parametrize("missing", ["empty", "nowhere", "file"])
def test_what_is_no_folder_of_images_is_one_line(tmp_path, missing):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    what = "holds no image; .*.jpg" if missing == "empty" else "is not a folder; give a fol"
    with pytest.raises(InputError, match=f"^--gallery={tmp_path}/{missing} {what}"):
        gallery.listed(str(tmp_path / missing))
