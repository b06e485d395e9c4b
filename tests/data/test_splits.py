"""Splits as TFDS writes them."""

import time

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
@hypothesis.given(st.text("train+[]:%5-", max_size=14) | st.text(max_size=14))
def test_any_text_is_a_split_or_one_line(text):
    assert "\n" not in refusal(splits.resolve, text, SPLITS, "data.eval")


def test_a_megabyte_of_spaces_is_refused_at_once():
    began = time.process_time()
    said = refusal(splits.resolve, f"train[{' ' * 10**6}", SPLITS, "data.eval")
    assert "is not a split" in said
    assert time.process_time() - began < 2
    assert splits.resolve("train  +\ttest", SPLITS, "data.eval")[1] == ("test", 0, 360)


def test_a_chain_too_long_is_refused():
    said = refusal(splits.resolve, "train+" * 3000 + "train", SPLITS, "data.eval")
    assert "is not a split" in said
