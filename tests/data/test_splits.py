"""Splits as TFDS writes them."""

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxcls.data import splits
from jaxcls.errors import InputError
from tests.properties import examples, refusal

SPLITS = {"train": 1437, "test": 360}


def test_resolve_gives_parts_with_absolute_bounds():
    parts = [("train", 1293, 1437), ("test", 0, 10)]
    assert splits.resolve("train[90%:]+test[:10]", SPLITS, "data.eval") == parts


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("trian", "data.eval='trian' is not a split (did you mean 'train'?); there are"),
        ("train[:90", "data.eval='train[:90' is not a split; there are train (n=1437)"),
        ("train[9999:]", "train (n=1437), test (n=360), and slices such as 'train[:90%]'"),
        ("train[:1shard]", "data.eval='train[:1shard]' is not a split"),
        ("", "data.eval='' is not a split"),
        ("train[5:5]", "data.eval='train[5:5]' holds no example; try 'train'"),
    ],
)
def test_a_bad_split_is_refused_with_the_splits_there_are(split, said):
    with pytest.raises(InputError) as refused:
        splits.resolve(split, SPLITS, "data.eval")
    assert said in str(refused.value)


@examples
@hypothesis.given(st.integers(1, 10**6), st.integers(0, 100))
def test_the_two_parts_of_a_split_hold_each_example_once(n, percent):
    parts = []
    for text in (f"train[:{percent}%]", f"train[{percent}%:]"):
        if "holds no example" not in refusal(splits.resolve, text, {"train": n}, "x"):
            parts += splits.resolve(text, {"train": n}, "x")
    edges = [edge for _, *edges in parts for edge in edges]
    assert edges[0] == 0
    assert edges[-1] == n
    assert edges[1:-1] in ([], [edges[1]] * 2)
    assert abs(edges[1] - n * percent / 100) <= 0.5 or len(parts) == 1


@examples
@hypothesis.given(st.text("train+[]:%5-", max_size=14) | st.text(max_size=14))
def test_any_text_is_a_split_or_one_line(text):
    assert "\n" not in refusal(splits.resolve, text, SPLITS, "data.eval")
