"""The file of features: what is in it, and that there is no half of one."""

import numpy as np
import pytest

from jaxcls.errors import InputError
from jaxcls.predict import features

PATHS = ["a, b.png", "\udcff.png", "é\n☃.png"]


@pytest.mark.parametrize("n", [3, 0])
def test_the_file_has_every_path_and_row_in_order(tmp_path, n):
    rows = np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)
    file = tmp_path / "x.npz"
    file.write_text("an old one")
    with features.writing(file, 5) as add:
        for path, row in zip(PATHS[:n], rows, strict=True):
            add(path, row)
        assert file.read_text() == "an old one"
    with np.load(file) as found:
        assert found["path"].tolist() == PATHS[:n]
        assert found["embed"].dtype == np.float32
        np.testing.assert_array_equal(found["embed"], rows)
    assert list(tmp_path.iterdir()) == [file]


def test_where_the_block_fails_the_old_file_stays_and_nothing_is_left(tmp_path):
    file = tmp_path / "x.npz"
    file.write_text("an old one")

    def stopped():
        with features.writing(file, 2) as add:
            add("a.png", np.zeros(2, np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert file.read_text() == "an old one"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_is_said_at_the_start_and_at_the_end(
    tmp_path, monkeypatch
):
    said = rf"^{tmp_path}/no/x.npz cannot be written \(No such file.*\); make room"
    with (
        pytest.raises(InputError, match=said),
        features.writing(tmp_path / "no/x.npz", 2),
    ):
        raise AssertionError

    def full(file, **arrays):
        file.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with (
        pytest.raises(InputError, match="No space left on device"),
        features.writing(tmp_path / "x.npz", 2),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n", [1, 3])
def test_what_is_written_is_read_with_the_features_mapped(tmp_path, n):
    rows = np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)
    file, about = tmp_path / "x.npz", {}
    with features.writing(file, 5, about) as add:
        for path, row in zip(PATHS[:n], rows, strict=True):
            add(path, row)
        about["more"] = np.arange(4)
    found = features.read(file)
    assert found["path"].tolist() == PATHS[:n]
    assert found["more"].tolist() == [0, 1, 2, 3]
    assert isinstance(found["embed"], np.memmap)
    assert not found["embed"].flags.writeable
    np.testing.assert_array_equal(found["embed"], rows)


def test_what_cannot_be_mapped_or_is_no_archive_is_refused(tmp_path):
    file = tmp_path / "x.npz"
    cases = {
        "embed.npy is compressed": lambda: np.savez_compressed(file, embed=np.ones((2, 2))),
        "embed.npy is no array of rows": lambda: np.savez(file, embed=np.ones((0, 2))),
        "File is not a zip file": lambda: file.write_bytes(b"hello"),
    }
    for said, make in cases.items():
        make()
        with pytest.raises(ValueError, match=f"^{said}$"):
            features.read(file)
    np.savez(file, mine=np.ones(2))
    assert list(features.read(file)) == ["mine"]
