"""The file of features: what is in it, and that there is no half of one."""

import contextlib

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
        assert found["embed"].shape == (n, 5)
        np.testing.assert_array_equal(found["embed"], rows)
    assert list(tmp_path.iterdir()) == [file]


def test_where_the_block_fails_the_old_file_stays_and_nothing_is_left(tmp_path):
    file = tmp_path / "x.npz"
    file.write_text("an old one")

    with contextlib.suppress(KeyboardInterrupt), features.writing(file, 2) as add:
        add("a.png", np.zeros(2, np.float32))
        raise KeyboardInterrupt
    assert file.read_text() == "an old one"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_is_said_at_the_start(tmp_path):
    said = rf"^{tmp_path}/no/x.npz cannot be written \(No such file.*\); make room"
    with pytest.raises(InputError, match=said), features.writing(tmp_path / "no/x.npz", 5):
        raise AssertionError
