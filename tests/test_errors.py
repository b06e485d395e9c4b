"""A name becomes a thing, or a line that names the nearest one."""

import pytest

from jaxcls.errors import InputError, did_you_mean, lookup, printable

TABLE = {"cosine": 1, "constant": 2, "linear": 3}


@pytest.mark.parametrize(
    ("name", "near"), [("cosin", " (did you mean 'cosine'?)"), ("zzz", "")]
)
def test_a_name_is_its_entry_or_is_answered_with_the_nearest_and_the_list(name, near):
    assert lookup(TABLE, "cosine", "optim.schedule") == 1
    with pytest.raises(InputError) as caught:
        lookup(TABLE, name, "optim.schedule")
    assert str(caught.value) == (
        f"unknown optim.schedule {name!r}{near}; known: constant, cosine, linear"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet5", " (did you mean 'resnet50'?)"), ("", ""), ("vit", "")],
)
def test_did_you_mean_names_the_nearest_or_nothing(name, expected):
    assert did_you_mean(name, iter(["cnn", "resnet50"])) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plain text, grün, 猫, 👩\u200d🚀", "plain text, grün, 猫, 👩\u200d🚀"),
        ("two\nlines", "two\nlines"),
        ("\x1b[31mred\x9b1A\x07\r", "\\x1b[31mred\\x9b1A\\x07\\r"),
        ("\u202eturned\u2066", "\\u202eturned\\u2066"),
        ("no\xa0break", "no\xa0break"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text, said):
    assert printable(text) == said


def test_a_refusal_is_one_printable_line_whatever_it_quotes():
    assert str(InputError("a\n\x1b[31mb")) == "a \\x1b[31mb"
    text = str(InputError("begins " + "\0" * 10**6 + " ends"))
    assert len(text) < 2100
    assert (text[:7], text[-5:]) == ("begins ", " ends")


def test_a_name_of_a_megabyte_has_no_near_one():
    assert did_you_mean("resnet50" * 10**5, ["resnet50" * 99]) == ""
