"""A name becomes a thing, or a line that names the nearest one."""

import pytest

from jaxcls.errors import InputError, did_you_mean, lookup

TABLE = {"cosine": 1, "constant": 2, "linear": 3}


def test_a_known_name_is_its_entry():
    assert lookup(TABLE, "cosine", "optim.schedule") == 1


def test_a_typo_is_answered_with_the_nearest_name_and_the_list():
    with pytest.raises(InputError) as caught:
        lookup(TABLE, "cosin", "optim.schedule")
    assert str(caught.value) == (
        "unknown optim.schedule 'cosin' (did you mean 'cosine'?);"
        " known: constant, cosine, linear"
    )


def test_a_name_like_none_is_answered_with_the_list_alone():
    with pytest.raises(InputError) as caught:
        lookup(TABLE, "zzz", "loss.name")
    assert str(caught.value) == ("unknown loss.name 'zzz'; known: constant, cosine, linear")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet5", " (did you mean 'resnet50'?)"), ("", ""), ("vit", "")],
)
def test_did_you_mean_names_the_nearest_or_nothing(name, expected):
    assert did_you_mean(name, iter(["cnn", "resnet50"])) == expected
