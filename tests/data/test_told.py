"""The words for a run's preprocessing, of each rule that a recipe has."""

import pytest

from jaxcls.config import loading
from jaxcls.data import told
from jaxcls.data.decode import FILTERS, HOST_OPS, ROUNDINGS
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "alexnet.py",
            "short side to 256 (bilinear, antialiased, longer side truncated, as"
            " torchvision and timm), center crop 224, normalized by imagenet",
        ),
        (
            "vit_s16.py:90",
            "short side to 256 (mean of an area, longer side rounded, as big_vision),"
            " center crop 224, normalized by symmetric",
        ),
        (
            "digits.py",
            "1 channel(s), resized to 16 (bilinear, antialiased), normalized by unit",
        ),
    ],
)
def test_a_recipe_says_its_preprocessing(name, words):
    config = loading.load(str(ROOT / "configs" / name))
    config.normalize = config.normalize.partition("(")[0]
    assert told.preprocessing(config) == words


def test_every_op_filter_and_rounding_has_words():
    config = loading.load(str(ROOT / "configs/digits.py"))
    for ops in (
        *(f"resize((32, 64), {name!r})" for name in FILTERS),
        *(f"resize_short(32, rounding={name!r})" for name in ROUNDINGS),
        *("resize_long((32, 64))", "letterbox(32, 9)"),
    ):
        config.data.eval_ops = f"decode | {ops}"
        assert "(" in told.preprocessing(config)
    assert told.preprocessing(config).count("decode") == 0
    assert HOST_OPS.keys() == told._WORDS.keys()
    config.data.eval_ops = "decode | mine.equalise(3, strong=True) | center_crop((8, 9))"
    assert told.preprocessing(config).startswith(
        "mine.equalise(3, strong=True), center crop 8x9"
    )
