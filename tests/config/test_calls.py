"""One line of text becomes calls; nothing in it is evaluated."""

import keyword
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxcls.augment import AUGMENTATIONS, MIXES, NORMALIZATIONS
from jaxcls.config import calls
from jaxcls.data.decode import OPS
from jaxcls.errors import InputError
from jaxcls.learning.metrics import METRICS
from jaxcls.models import MODELS
from tests.properties import examples, refusal


def crop(size, mode="zero"):
    if size < 0:
        raise ValueError(f"size={size} must be at least 0")
    return ("crop", size, mode)


def flip(p=0.5):
    return ("flip", p)


TABLE = {"crop": crop, "flip": flip}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  ", []),
        ("a", [("a", (), {})]),
        (" a() ", [("a", (), {})]),
        ("a | b(1) | c", [("a", (), {}), ("b", (1,), {}), ("c", (), {})]),
        (
            "a(-1, 2.5, 'x', True, None, (1, 2), k=[3])",
            [("a", (-1, 2.5, "x", True, None, (1, 2)), {"k": [3]})],
        ),
        ("a('x | y')", [("a", ("x | y",), {})]),
    ],
)
def test_text_is_parsed_into_calls_in_order(text, expected):
    assert calls.parse(text, "augment") == expected


@pytest.mark.parametrize(
    "text",
    [
        "a |",
        "a b",
        "a || b",
        "1 | 2",
        "a.b(1)",
        "a[0]",
        "a(**{})",
        "lambda: 1",
        "a(",
        "a\nb",
    ],
)
def test_text_that_is_no_pipeline_is_refused_with_one_that_is(text):
    with pytest.raises(InputError) as caught:
        calls.parse(text, "augment")
    assert str(caught.value) == (
        f"augment={text!r} is not a pipeline; write names with literal arguments"
        " joined by '|', such as 'decode | center_crop(224)'"
    )


@pytest.mark.parametrize("table", [AUGMENTATIONS, MIXES, METRICS, NORMALIZATIONS])
def test_the_example_of_a_table_works_there(table):
    with pytest.raises(InputError) as caught:
        calls.build("a(", table, "key")
    example = re.search(r"such as '(.*)'$", str(caught.value))[1]
    assert calls.build(example, table, "key")


@pytest.mark.parametrize(
    "argument", ["open('x')", "b", "1 + 1", "*(1, 2)", "k=b", "k=2 * 3", "{[1]}"]
)
def test_an_argument_that_is_no_literal_is_refused(argument):
    with pytest.raises(InputError, match=r"^augment=.*'a' must be literals, such as 224"):
        calls.parse(f"a({argument})", "augment")


def test_an_argument_given_twice_is_refused():
    with pytest.raises(InputError, match=r"'crop' is given an argument twice"):
        calls.parse("crop(size=1, size=2)", "augment")


def test_build_calls_each_entry_in_order():
    built = calls.build("crop(4, mode='reflect') | flip", TABLE, "augment")
    assert built == [("crop", 4, "reflect"), ("flip", 0.5)]


def test_build_one_passes_what_is_given_besides():
    assert calls.build_one("crop(mode='x')", TABLE, "k", size=3) == ("crop", 3, "x")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError) as caught:
        calls.build("flip | crpo(4)", TABLE, "augment")
    assert str(caught.value) == (
        "unknown augment 'crpo' (did you mean 'crop'?); known: crop, flip"
    )


@pytest.mark.parametrize("text", ["crop", "crop(1, 2, 3)", "crop(1, sise=2)"])
def test_wrong_arguments_are_answered_with_the_right_ones(text):
    with pytest.raises(InputError) as caught:
        calls.build(text, TABLE, "augment")
    assert str(caught.value).startswith("augment: crop does not take these arguments (")
    assert str(caught.value).endswith("it takes crop(size, mode='zero')")


def test_an_argument_that_is_set_elsewhere_is_refused_and_not_offered():
    with pytest.raises(InputError) as caught:
        calls.build_one("crop(size=9)", TABLE, "optim.name", size=3)
    assert str(caught.value) == (
        "optim.name: crop does not take these arguments ('size' is not set here);"
        " it takes crop(mode='zero')"
    )


def test_a_value_that_an_entry_refuses_is_named():
    with pytest.raises(InputError, match=r"^augment: crop: size=-1 must be at least 0$"):
        calls.build("crop(-1)", TABLE, "augment")


@pytest.mark.parametrize(("text", "count"), [("", 0), ("crop(1) | flip", 2)])
def test_build_one_wants_exactly_one(text, count):
    with pytest.raises(InputError) as caught:
        calls.build_one(text, TABLE, "optim.name")
    assert str(caught.value) == (
        f"optim.name={text!r} names {count} things where one is needed; one of: crop, flip"
    )


@pytest.mark.parametrize(
    ("text", "table", "said"),
    [
        (
            "random_crop(1.5)",
            AUGMENTATIONS,
            r"padding=1.5 is not int.*random_crop\(padding",
        ),
        ("random_crop(True)", AUGMENTATIONS, r"padding=True is not int"),
        ("topk('a')", METRICS, r"k='a' is not int.*topk\(k=5\)"),
        ("resize((8, 8, 8))", OPS, r"size=\(8, 8, 8\) is not int \| tuple\[int, int\]"),
        ("random_resized_crop(8, area=(0, 'x'))", OPS, r"area=\(0, 'x'\) is not tuple"),
        ("cnn(widths=3, num_classes=2)", MODELS, r"widths=3 is not tuple\[int, \.\.\.\]"),
        ("cnn(batch_norm=1, num_classes=2)", MODELS, r"batch_norm=1 is not bool"),
        ("mean_std((1, 'a'), (1, 1))", NORMALIZATIONS, r"mean=\(1, 'a'\) is not"),
    ],
)
def test_an_argument_of_another_kind_is_refused_with_the_signature(text, table, said):
    with pytest.raises(InputError, match=said):
        calls.build(text, table, "key")


def test_whole_numbers_are_numbers_and_lists_are_tuples():
    (crop,) = calls.build("random_resized_crop([8, 9], area=(1, 1))", OPS, "key")
    assert crop(np.zeros((20, 20, 3), np.uint8), np.random.default_rng(0)).shape == (
        8,
        9,
        3,
    )


NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: not keyword.iskeyword(name)
)
LITERALS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=5,
)
CALLS = st.builds(
    calls.Call,
    NAMES,
    st.lists(LITERALS, max_size=3).map(tuple),
    st.dictionaries(NAMES, LITERALS, max_size=2),
)


@examples
@hypothesis.given(st.lists(CALLS, max_size=4))
def test_calls_written_as_python_are_parsed_back(expected):
    texts = (
        f"{call.name}({', '.join(arguments)})"
        for call in expected
        for arguments in [
            [*map(repr, call.args), *(f"{k}={v!r}" for k, v in call.kwargs.items())]
        ]
    )
    assert calls.parse(" | ".join(texts), "augment") == expected


@examples
@hypothesis.given(st.text(max_size=30) | st.text("ab1 |(),='[]{}*.:\n", max_size=20))
def test_any_text_is_calls_or_one_line(text):
    assert "\n" not in refusal(calls.parse, text, "augment")
