"""Probabilities of logits by hand, and the file that lists them."""

import csv
import io

import numpy as np
import pytest
from scipy.special import logit

from jaxcls.errors import InputError
from jaxcls.evaluation.predictions import Predictions, mean_logits, probabilities, write_csv

FOUND = Predictions(
    np.array([[0, np.log(3)], [5, 5], [np.nan, 0]], np.float32),
    np.array([1, 0, 1], np.int32),
)


def test_softmax_and_sigmoid_are_their_definitions_at_any_temperature():
    logits = np.array([[1.0, -2.0, 0.5], [300.0, 0.0, -300.0]], np.float32)
    powers = np.exp(logits[0].astype(float) / 2)
    np.testing.assert_allclose(
        probabilities(logits, temperature=2)[0], powers / powers.sum()
    )
    np.testing.assert_allclose(probabilities(logits)[1], [1, np.exp(-300), np.exp(-600)])
    each = 1 / (1 + np.exp(-logits[0].astype(float)))
    np.testing.assert_allclose(probabilities(logits, "sigmoid")[0], each)


def test_a_mean_of_probabilities_has_logits_of_which_it_is_the_probability():
    members = [np.array([[0.2, 0.8], [0, 1]]), np.array([[0.6, 0.4], [0, 1]])]
    found = mean_logits(members)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], np.log([0.4, 0.6]), rtol=1e-6)
    assert np.isfinite(found).all()
    each = mean_logits(members, "sigmoid")
    np.testing.assert_allclose(each[0], logit([0.4, 0.6]), rtol=1e-6)
    assert np.isfinite(each).all()
    np.testing.assert_allclose(
        probabilities(each, "sigmoid"), np.mean(members, 0), rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize("top", [0, 1, 9])
def test_the_file_has_a_line_an_example_and_a_class_of_none_is_empty(top, tmp_path):
    file, names = tmp_path / "p.csv", ("a, b", "c")
    write_csv(file, FOUND, "softmax", names, lambda index: f"at {index}", top)
    header, *rows = csv.reader(io.StringIO(file.read_text()))
    listed = [f"{kind}_{k}" for k in (1, 2)[:top] for kind in ("class", "probability")]
    assert header == ["index", "where", "label", "predicted",
                      *(listed or ["p(a, b)", "p(c)"])]  # fmt: skip
    assert [row[:4] for row in rows] == [
        ["0", "at 0", "c", "c"], ["1", "at 1", "a, b", "a, b"], ["2", "at 2", "c", ""]
    ]  # fmt: skip
    assert rows[0][4:] == (["c", "0.75", "a, b", "0.25"][: 2 * top] or ["0.25", "0.75"])


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("old")

    def where(index):
        if index:
            raise InputError("no such record")
        return "here"

    with pytest.raises(InputError, match="no such record"):
        write_csv(file, FOUND, "softmax", ("a", "b"), where)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
