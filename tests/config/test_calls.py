"""One line of text becomes calls; nothing in it is evaluated."""

import keyword
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxcls.augment import AUGMENTATIONS, MIXES, NORMALIZATIONS
from jaxcls.config import calls
from jaxcls.data.decode import HOST_OPS, RANDOM_HOST_OPS
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


def test_a_text_that_is_too_deep_is_refused_in_a_line_of_some_length():
    for count in (500, 1500, 3000, 10_000, 100_000):
        deep = [
            "(" * count + "a" + ")" * count,
            "a(" * count + ")" * count,
            "a(" + "[" * count + "]" * count + ")",
            "a(" + "-" * count + "x)",
            "a(" + "1+" * count + "x)",
            "not " * count + "a",
            "a." * count + "a",
            "-" * count + "1",
        ]
        for text in deep:
            with pytest.raises(InputError) as caught:
                calls.parse(text, "augment")
            assert len(str(caught.value)) < 1300
            with pytest.raises(InputError):
                calls.table(text, "optim.lr_scale", example="{'bias$': 64}")
    with pytest.raises(InputError, match=r"augment='a\|a\|.*\.\.\.' is not a pipeline"):
        calls.parse("|".join(["a"] * 100_000), "augment")


@pytest.mark.parametrize(
    "text", ["a |", "a b", "a || b", "1 | 2", "a.b.c(1)", "a[0]", "lambda: 1", "a(", "a\nb"]
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


def crop_refused(build, text, **given):
    with pytest.raises(InputError) as caught:
        build(text, TABLE, "augment", **given)
    return str(caught.value)


def test_build_calls_each_entry_in_order():
    built = calls.build("crop(4, mode='reflect') | flip", TABLE, "augment")
    assert built == [("crop", 4, "reflect"), ("flip", 0.5)]
    assert calls.build_one("crop('x')", TABLE, "k", size=3) == ("crop", 3, "x")
    assert calls.build_one("crop(mode='x')", TABLE, "k", size=3) == ("crop", 3, "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flip | crpo(4)", "unknown augment 'crpo' (did you mean 'crop'?); known: crop, f"),
        ("crop(size=1, size=2)", "augment='crop(size=1, size=2)': 'crop' is given an argu"),
        ("crop(**{})", "augment='crop(**{})': 'crop' is given an argument twice, or with"),
        ("crop(-1)", "augment: crop: size=-1 must be at least 0"),
    ],
)
def test_what_cannot_be_built_is_named(text, said):
    assert crop_refused(calls.build, text).startswith(said)


@pytest.mark.parametrize(
    ("text", "given", "signature"),
    [
        ("crop", {}, "crop(size, mode='zero')"),
        ("crop(1, 2, 3)", {}, "crop(size, mode='zero')"),
        ("crop(1, sise=2)", {}, "crop(size, mode='zero')"),
        ("crop(size=9)", {"size": 3}, "crop(mode='zero')"),
        ("crop('x', mode='y')", {"size": 3}, "crop(mode='zero')"),
    ],
)
def test_wrong_arguments_are_answered_with_the_right_ones(text, given, signature):
    said = crop_refused(calls.build_one, text, **given)
    assert said.startswith("augment: crop does not take these arguments (")
    assert said.endswith(f"it takes {signature}")


@pytest.mark.parametrize(("text", "count"), [("", 0), ("crop(1) | flip", 2)])
def test_build_one_wants_exactly_one(text, count):
    assert crop_refused(calls.build_one, text) == (
        f"augment={text!r} names {count} things where one is needed; one of: crop, flip"
    )


@pytest.mark.parametrize(
    ("text", "table", "said"),
    [
        ("random_crop(1.5)", AUGMENTATIONS, r"padding=1.5 is not int.*random_crop\(paddi"),
        ("random_crop(True)", AUGMENTATIONS, r"padding=True is not int"),
        (
            "resize((8, 8, 8))",
            HOST_OPS,
            r"size=\(8, 8, 8\) is not int \| tuple\[int, int\]",
        ),
        (
            "random_resized_crop(8, area=(0, 'x'))",
            RANDOM_HOST_OPS,
            r"area=\(0, 'x'\) is not tuple",
        ),
        ("cnn(widths=3, num_classes=2)", MODELS, r"widths=3 is not tuple\[int, \.\.\.\]"),
        ("cnn(batch_norm=1, num_classes=2)", MODELS, r"batch_norm=1 is not bool"),
        ("cnn(dropout=1e999, num_classes=2)", MODELS, r"dropout=inf is not float"),
        ("mean_std((1, 'a'), (1, 1))", NORMALIZATIONS, r"mean=\(1, 'a'\) is not"),
    ],
)
def test_an_argument_of_another_kind_is_refused_with_the_signature(text, table, said):
    with pytest.raises(InputError, match=said):
        calls.build(text, table, "key")


def test_whole_numbers_are_numbers_and_lists_are_tuples():
    (crop,) = calls.build(
        "random_resized_crop([8, 9], area=(1, 1))", RANDOM_HOST_OPS, "key"
    )
    made = crop(np.zeros((20, 20, 3), np.uint8), np.random.default_rng(0))
    assert made.shape == (8, 9, 3)


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


@hypothesis.settings(examples, max_examples=60)
@hypothesis.given(st.lists(CALLS, max_size=4))
def test_calls_written_as_python_are_parsed_back(expected):
    def text(call):
        named = (f"{name}={value!r}" for name, value in call.kwargs.items())
        return f"{call.name}({', '.join([*map(repr, call.args), *named])})"

    assert calls.parse(" | ".join(map(text, expected)), "augment") == expected


@examples
@hypothesis.given(st.text(max_size=30) | st.text("ab1 |(),='[]{}*.:\n", max_size=20))
def test_any_text_is_calls_or_one_line(text):
    assert "\n" not in refusal(calls.parse, text, "augment")
