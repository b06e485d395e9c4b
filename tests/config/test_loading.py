"""A config is checked wherever it comes from: the defaults, a file, a command line."""

import ast
import re

import pytest
from ml_collections import ConfigDict

from jaxcls.config import loading
from jaxcls.config.knobs import KNOBS, describe
from jaxcls.errors import InputError


@pytest.fixture
def written(tmp_path):
    """``written("c.seed = 3")`` -> the path of a config file with that body."""

    def write(*body, head=""):
        lines = [
            "from jaxcls.config import base",
            head,
            "def get_config():",
            "    c = base()",
        ]
        lines += [f"    {line}" for line in (*body, "return c")]
        path = tmp_path / "mine.py"
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return write


def message(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return str(caught.value)


def test_the_defaults_are_valid_and_locked():
    base = loading.base()
    loading.check(base)
    assert loading.flat(base) == {key: knob.default for key, knob in KNOBS.items()}
    with pytest.raises(AttributeError):
        base.optim.momentum = 0.9


def test_flat_and_from_flat_are_inverse():
    values = loading.flat(loading.base()) | {"optim.lr": 0.3, "data.name": "mnist"}
    made = loading.from_flat(values)
    assert (made.optim.lr, made.data.name) == (0.3, "mnist")
    assert loading.flat(made) == values
    assert list(loading.flat(made)) == list(KNOBS)


def test_from_flat_fills_what_is_left_out_with_the_defaults():
    assert loading.from_flat({}).to_dict() == loading.base().to_dict()
    assert loading.differences(loading.base(), loading.from_flat({"seed": 4})) == {
        "seed": (0, 4)
    }


def test_from_flat_refuses_an_unknown_key():
    assert message(loading.from_flat, {"optim.lrr": 1}) == (
        "unknown config key 'optim.lrr' (did you mean 'optim.lr'?);"
        " jaxcls train --help lists every key"
    )


def test_differences_names_each_key_with_both_values():
    old = loading.from_flat({"optim.lr": 0.1, "length": "1 epoch"})
    new = loading.from_flat({"optim.lr": 0.2, "length": "1 epoch", "ema.decay": 0.9})
    assert loading.differences(old, new) == {
        "optim.lr": (0.1, 0.2),
        "ema.decay": (0.0, 0.9),
    }
    assert loading.differences(old, old) == {}


def test_the_text_of_a_config_reads_back_as_its_values():
    made = loading.from_flat({"model.name": "cnn(dense=8)", "optim.lr": 1e-5})
    lines = [line.split(" = ", 1) for line in loading.to_text(made).splitlines()]
    assert {key: ast.literal_eval(value) for key, value in lines} == loading.flat(made)


def test_help_has_a_line_for_every_knob_and_marks_those_of_identity():
    text = describe()
    assert max(map(len, text.splitlines())) < 100
    rows = re.split(r"\n(?=  [* ] \S)", text)
    for row, (key, knob) in zip(rows, KNOBS.items(), strict=True):
        assert row.startswith(f"  {'*' if knob.identity else ' '} {key} ")
        assert f"{knob.about} [" in " ".join(row.split())


def test_a_file_changes_only_what_differs(written):
    made = loading.load(written("c.optim.lr = 1", "c.data.name = 'mnist'"))
    assert loading.differences(loading.base(), made) == {
        "optim.lr": (0.1, 1.0),
        "data.name": ("digits", "mnist"),
    }
    assert type(made.optim.lr) is float


def test_a_group_replaced_as_a_whole_is_refused(written):
    said = message(loading.load, written("c.early_stop = dict(patience=1)"))
    assert said.endswith(
        "config.early_stop was replaced as a whole, and lacks early_stop.min_delta;"
        " set one key at a time: c.early_stop.min_delta = 0.0"
    )


def test_values_of_a_file_are_checked(written):
    said = message(loading.load, written("c.optim.lr = float('nan')"))
    assert said == "optim.lr=nan is not a finite number; try 0.1"


def test_text_after_a_colon_is_handed_to_get_config(tmp_path):
    path = tmp_path / "with_argument.py"
    path.write_text(
        "from jaxcls.config import base\n"
        "def get_config(name='cnn'):\n"
        "    c = base()\n    c.model.name = name\n    return c\n"
    )
    assert loading.load(f"{path}:resnet18").model.name == "resnet18"
    assert loading.load(str(path)).model.name == "cnn"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("c.optim.lrr = 1", "unknown config key 'lrr' (did you mean 'lr'?)"),
        ("c.optin.lr = 1", "unknown config key 'optin' (did you mean 'optim'?)"),
        ("c.batchsize = 1", "unknown config key 'batchsize' (did you mean 'batch_size'?)"),
        ("c.lr = 1", "unknown config key 'lr' here; there is optim.lr"),
        ("print(c.optim.lrr)", "unknown config key 'lrr' (did you mean 'lr'?)"),
        ("c.update(sead=1)", "unknown config key 'sead' (did you mean 'seed'?)"),
        ("c.optim.momentum = 1", "unknown config key 'momentum'"),
        ("c.model.name.size = 1", "AttributeError: 'str' object has no attribute 'size'"),
        ("print(undefined)", "NameError: name 'undefined' is not defined"),
        ("{}['optim']", "KeyError: optim"),
    ],
)
def test_a_failing_line_of_a_file_is_named_with_its_number(written, line, said):
    path = written("c.seed = 1", line)
    assert message(loading.load, path).startswith(f"{path}:6: {said}")


def test_the_number_is_there_for_a_relative_path_too(written, tmp_path, monkeypatch):
    written("c.optim.lrr = 1")
    monkeypatch.chdir(tmp_path)
    assert message(loading.load, "mine.py").startswith("mine.py:5: unknown config key")


def test_a_syntax_error_in_a_file_is_named_with_its_number(written):
    path = written("c.seed = = 1")
    assert message(loading.load, path) == f"{path}:5: SyntaxError: " + (
        "invalid syntax (mine.py, line 5)"
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("c.batch_size = '64'", "batch_size=64 is str, and must be int, such as 128"),
        ("c.optim.lr = 'fast'", "lr=fast is str, and must be float, such as 0.1"),
        ("c.model.name = 3", "name=3 is int, and must be str, such as 'cnn'"),
        ("c.optim = 5", "optim=5 is int, and must be set one key at a time"),
        ("c.seed = True", "seed=True is bool, and must be int; the default is 0"),
        ("c.optim.lr = None", "optim.lr=None is NoneType, and must be float; the default"),
    ],
)
def test_a_wrong_type_in_a_file_is_refused(written, line, said):
    assert said in message(loading.load, written(line))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", "defines no get_config(); see configs/digits.py"),
        (
            "def get_config():\n    return {}\n",
            "get_config() must return the ConfigDict of base()",
        ),
    ],
)
def test_a_file_without_a_config_is_refused(tmp_path, text, said):
    path = tmp_path / "empty.py"
    path.write_text(text)
    assert said in message(loading.load, str(path))


def test_a_missing_file_is_answered_with_the_configs_there_are():
    said = message(loading.load, "configs/digit.py")
    assert said.startswith(
        "config configs/digit.py is not a file (did you mean 'digits.py'"
    )
    assert "{alexnet,cifar10,cifar10_fast," in said


@pytest.mark.parametrize("name", ["configs/digits.py", "digits.py"])
def test_our_configs_are_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert loading.load(name).data.name == "digits"


def test_a_file_on_disk_goes_before_ours_of_the_same_name(written, tmp_path, monkeypatch):
    written("c.seed = 77")
    (tmp_path / "mine.py").rename(tmp_path / "digits.py")
    monkeypatch.chdir(tmp_path)
    assert loading.load("digits.py").seed == 77


def test_a_file_elsewhere_is_not_replaced_by_ours(tmp_path):
    assert "is not a file" in message(loading.load, str(tmp_path / "digits.py"))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("batch_size", "64", 64),
        ("optim.lr", "3", 3.0),
        ("optim.lr", "1e-3", 0.001),
        ("log.tensorboard", "False", False),
        ("log.tensorboard", "true", True),
        ("model.name", "cnn(dropout=0.5)", "cnn(dropout=0.5)"),
        ("data.eval", "", ""),
        ("data.name", "123", "123"),
    ],
)
def test_an_override_takes_the_type_of_the_default(written, key, text, value):
    got = loading.flat(loading.load(written(), {key: text}))[key]
    assert got == value
    assert type(got) is type(value)


def test_an_override_goes_over_the_file(written):
    path = written("c.optim.lr = 0.5", "c.seed = 3")
    made = loading.load(path, {"optim.lr": "0.25"})
    assert (made.optim.lr, made.seed) == (0.25, 3)


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("batch_size", "64.5", "must be a whole number; try --config.batch_size=128"),
        ("batch_size", "", "must be a whole number; try --config.batch_size=128"),
        ("optim.lr", "fast", "must be a number; try --config.optim.lr=0.1"),
        ("optim.lr", "nan", "must be a finite number; try --config.optim.lr=0.1"),
        ("ema.decay", "-inf", "must be a finite number; try --config.ema.decay=0.0"),
        (
            "log.tensorboard",
            "yes",
            "must be true or false; try --config.log.tensorboard=true",
        ),
    ],
)
def test_an_override_of_the_wrong_kind_is_refused(key, text, said):
    assert message(loading.override, loading.base(), key, text) == (
        f"--config.{key}={text} {said}"
    )


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("optim.lrr", " (did you mean 'optim.lr'?)"),
        ("lr", " (did you mean 'optim.lr'?)"),
        ("batchsize", " (did you mean 'batch_size'?)"),
        ("zzz", ""),
    ],
)
def test_an_unknown_override_is_answered_with_the_nearest_key(key, near):
    assert message(loading.override, loading.base(), key, "1") == (
        f"unknown config key {key!r}{near}; jaxcls train --help lists every key"
    )


def test_an_override_of_a_group_is_answered_with_its_keys():
    said = message(loading.override, loading.base(), "early_stop", "3")
    assert said == (
        "config.early_stop is a group of keys; set one of:"
        " early_stop.patience, early_stop.min_delta"
    )


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optim.lr", float("nan"), "optim.lr=nan is not a finite number; try 0.1"),
        ("optim.lr", float("inf"), "optim.lr=inf is not a finite number; try 0.1"),
        ("optim.lr", 0.0, "optim.lr=0.0 must be above 0; the default is 0.1"),
        ("batch_size", 0, "batch_size=0 must be at least 1; the default is 128"),
        ("checkpoint.keep", 0, "checkpoint.keep=0 must be at least 1; the default is 1"),
        ("data.prefetch", 0, "data.prefetch=0 must be at least 1; the default is 2"),
        ("data.threads", -1, "data.threads=-1 must not be negative; the default is 0"),
        ("optim.weight_decay", -0.1, "optim.weight_decay=-0.1 must not be negative"),
        ("seed", -1, "seed=-1 must be from 0 to 2**32 - 1; the default is 0"),
        ("seed", 2**32, "seed=4294967296 must be from 0 to 2**32 - 1"),
        ("loss.smoothing", 1.0, "loss.smoothing=1.0 must be below 1; the default is 0.0"),
        ("ema.decay", 1.0, "ema.decay=1.0 must be below 1; the default is 0.0"),
        ("length", "0 epochs", "length='0 epochs' must be above 0; try '1 epoch'"),
        ("length", "5 percent", "length='5 percent': give epochs, steps or examples"),
        ("eval.every", "often", "eval.every='often' is not a duration; write a number"),
        ("log.every", "0 steps", "log.every='0 steps' must be above 0; try '1 epoch'"),
        ("optim.decay_on", "(", "optim.decay_on='(' is not a regular expression"),
        (
            "model.dtype",
            "float16",
            "model.dtype='float16' must be one of ('auto', 'float32',",
        ),
        ("early_stop.patience", 2, "early_stop.patience=2 needs evaluations and data.eval"),
    ],
)
def test_a_value_out_of_its_range_is_refused(key, value, said):
    assert message(loading.check, loading.from_flat({key: value})).startswith(said)


@pytest.mark.parametrize(
    "values",
    [
        {"optim.warmup": "0 steps"},
        {"seed": 2**32 - 1},
        {"early_stop.patience": 2, "data.eval": "test"},
        {"checkpoint.every": "5 percent", "model.dtype": "bfloat16"},
    ],
)
def test_a_value_at_the_edge_of_its_range_is_taken(values):
    made = loading.from_flat(values)
    loading.check(made)
    assert isinstance(made, ConfigDict)


@pytest.mark.parametrize(
    ("key", "value", "other"),
    [
        ("distill.weight", 0.9, "distill.run=''"),
        ("ema.every", 5, "ema.decay=0.0"),
        ("init.head", "fresh", "init.weights=''"),
        ("optim.warmup_from", 0.5, "optim.warmup='0 steps'"),
    ],
)
def test_a_key_that_does_nothing_alone_is_refused(key, value, other):
    said = message(loading.check_alone, loading.from_flat({key: value}))
    assert said.startswith(f"{key}={value!r} does nothing where {other}; set ")
