"""A config is checked wherever it comes from: the defaults, a file, a command line."""

import ast
import re

import pytest

from jaxcls.config import loading
from jaxcls.config.knobs import KNOBS, describe
from jaxcls.errors import InputError


@pytest.fixture
def written(tmp_path, monkeypatch):
    """``written("c.seed = 3")`` -> a config file "mine.py" here with that body."""
    monkeypatch.chdir(tmp_path)

    def write(*body):
        head = ["from jaxcls.config import base", "", "def get_config():", "    c = base()"]
        lines = [*head, *(f"    {line}" for line in (*body, "return c"))]
        (tmp_path / "mine.py").write_text("\n".join(lines) + "\n")
        return "mine.py"

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


def test_flat_and_from_flat_are_inverse_and_the_text_reads_back():
    values = loading.flat(loading.base()) | {"optim.lr": 1e-5, "model.name": "cnn(dense=8)"}
    made = loading.from_flat(values)
    assert (made.optim.lr, made.model.name) == (1e-5, "cnn(dense=8)")
    assert loading.flat(made) == values
    assert list(loading.flat(made)) == list(KNOBS)
    lines = [line.split(" = ", 1) for line in loading.to_text(made).splitlines()]
    assert {key: ast.literal_eval(value) for key, value in lines} == values


def test_differences_names_each_key_with_both_values():
    old = loading.from_flat({"optim.lr": 0.1, "length": "1 epoch"})
    new = loading.from_flat({"optim.lr": 0.2, "length": "1 epoch", "ema.decay": 0.9})
    expected = {"optim.lr": (0.1, 0.2), "ema.decay": (0.0, 0.9)}
    assert loading.differences(old, new) == expected
    assert loading.differences(old, old) == {}


def test_help_has_a_line_for_every_knob_and_marks_those_of_identity():
    text = describe()
    assert max(map(len, text.splitlines())) < 100
    rows = re.split(r"\n(?=  [* ] \S)", text)
    for row, (key, knob) in zip(rows, KNOBS.items(), strict=True):
        assert row.startswith(f"  {'*' if knob.identity else ' '} {key} ")
        assert f"{knob.about} [" in " ".join(row.split())


def test_a_file_changes_only_what_differs_and_an_override_goes_over_it(written):
    path = written("c.optim.lr = 1", "c.data.name = 'mnist'", "c.seed = 3")
    made = loading.load(path, {"seed": "4"})
    expected = {"optim.lr": (0.1, 1.0), "data.name": ("digits", "mnist"), "seed": (0, 4)}
    assert loading.differences(loading.base(), made) == expected
    assert type(made.optim.lr) is float


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
        ("c.optim.lrr = 1", "5: unknown config key 'lrr' (did you mean 'lr'?)"),
        ("c.optin.lr = 1", "5: unknown config key 'optin' (did you mean 'optim'?)"),
        ("c.lr = 1", "5: unknown config key 'lr' (did you mean 'optim.lr'?)"),
        ("print(c.optim.lrr)", "5: unknown config key 'lrr' (did you mean 'lr'?)"),
        ("c.update(sead=1)", "5: unknown config key 'sead' (did you mean 'seed'?)"),
        ("c.model.name.size = 1", "5: AttributeError: 'str' object has no attribute"),
        ("print(undefined)", "5: NameError: name 'undefined' is not defined"),
        ("import nothing_like_it", "5: ModuleNotFoundError: No module named 'nothing_li"),
        ("{}['optim']", "5: KeyError: 'optim'"),
        ("c.seed = = 1", "5: SyntaxError: invalid syntax (mine.py, line 5)"),
        ("c.batch_size = '64'", "5: TypeError: Could not override field 'batch_size'"),
        ("c.optim = 5", "5: TypeError: Could not override field 'optim' (reference). 5 is"),
        ("c.seed = True", " seed=True is bool, and must be int; the default is 0"),
        ("c.optim.lr = None", " optim.lr=None is NoneType, and must be float; the def"),
        (
            "c.early_stop = dict(patience=1)",
            " config.early_stop was replaced as a whole, and lacks early_stop.min_delta;"
            " set one key at a time: c.early_stop.min_delta = 0.0",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(written, line, said):
    assert message(loading.load, written(line)).startswith(f"mine.py:{said}")


def test_a_file_without_a_good_config_is_refused(written, tmp_path):
    said = message(loading.load, written("c.optim.lr = float('nan')"))
    assert said == "optim.lr=nan is not a finite number; the default is 0.1"
    said = message(loading.load, written("c = 3"))
    assert said == "config mine.py: get_config() must return the ConfigDict of base()"
    (tmp_path / "mine.py").write_text("x = 1\n")
    said = message(loading.load, "mine.py")
    assert said == "config mine.py defines no get_config(); see configs/digits.py"


def test_a_missing_file_is_answered_with_the_configs_there_are(tmp_path):
    said = message(loading.load, "configs/digit.py")
    assert said.startswith(
        "config configs/digit.py is not a file (did you mean 'digits.py'"
    )
    assert "{alexnet,backbones,cifar10,cifar10_fast," in said
    assert "is not a file" in message(loading.load, str(tmp_path / "digits.py"))


def test_our_configs_are_found_from_any_folder_after_what_is_there(written, tmp_path):
    for name in ("configs/digits.py", "digits.py"):
        assert loading.load(name).data.name == "digits"
    written("c.seed = 77")
    (tmp_path / "mine.py").rename(tmp_path / "digits.py")
    assert loading.load("digits.py").seed == 77


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("batch_size", "64", 64),
        ("optim.lr", "3", 3.0),
        ("optim.lr", "1e-3", 0.001),
        ("log.tensorboard", "False", False),
        ("log.tensorboard", "true", True),
        ("data.eval", "", ""),
        ("data.name", "123", "123"),
    ],
)
def test_an_override_takes_the_type_of_the_default(key, text, value):
    config = loading.base()
    loading.override(config, key, text)
    got = loading.flat(config)[key]
    assert got == value
    assert type(got) is type(value)


UNKNOWN = "; jaxcls train --help lists every key"


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        (
            "batch_size",
            "64.5",
            "--config.batch_size=64.5 must be a whole number; try --conf",
        ),
        (
            "batch_size",
            "",
            "--config.batch_size= must be a whole number; try --config.batch",
        ),
        (
            "optim.lr",
            "x",
            "--config.optim.lr=x must be a number; try --config.optim.lr=0.1",
        ),
        (
            "log.tensorboard",
            "yes",
            "--config.log.tensorboard=yes must be true or false; try",
        ),
        ("optim.lrr", "1", "unknown config key 'optim.lrr' (did you mean 'optim.lr'?)"),
        ("lr", "1", "unknown config key 'lr' (did you mean 'optim.lr'?)" + UNKNOWN),
        ("batchsize", "1", "unknown config key 'batchsize' (did you mean 'batch_size'?)"),
        ("zzz", "1", "unknown config key 'zzz'" + UNKNOWN),
        (
            "early_stop",
            "3",
            "config.early_stop is a group of keys; set one of: early_stop.p",
        ),
    ],
)
def test_an_override_that_cannot_be_is_refused(key, text, said):
    assert message(loading.override, loading.base(), key, text).startswith(said)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "optim.lr",
            float("inf"),
            "optim.lr=inf is not a finite number; the default is 0.1",
        ),
        ("optim.lr", 0.0, "optim.lr=0.0 must be above 0; the default is 0.1"),
        ("batch_size", 0, "batch_size=0 must be at least 1; the default is 128"),
        ("data.threads", -1, "data.threads=-1 must not be negative; the default is 0"),
        ("optim.weight_decay", -0.1, "optim.weight_decay=-0.1 must not be negative"),
        ("seed", -1, "seed=-1 must not be negative; the default is 0"),
        ("seed", 2**32, "seed=4294967296 must be below 2**32; the default is 0"),
        ("seeds.order", -2, "seeds.order=-2 must be at least -1; the default is -1"),
        ("seeds.order", 2**32, "seeds.order=4294967296 must be below 2**32"),
        ("loss.smoothing", 1.0, "loss.smoothing=1.0 must be below 1; the default is 0.0"),
        ("distill.weight", 1.5, "distill.weight=1.5 must be at most 1; the default is 0.5"),
        ("length", "0 epochs", "length='0 epochs' must be above 0; the default is '10 ep"),
        ("length", "5 percent", "length='5 percent' must be in epochs, steps or examples"),
        ("eval.every", "often", "eval.every='often' is not a duration; write a number"),
        ("optim.decay_on", "(", "optim.decay_on='(' is not a regular expression"),
        ("model.dtype", "float16", "model.dtype='float16' must be one of ('auto', 'float"),
        ("early_stop.patience", 2, "early_stop.patience=2 needs evaluations and data.eval"),
        (
            "optim.accumulate",
            3,
            "optim.accumulate=3 does not divide batch_size=128; try opt",
        ),
    ],
)
def test_a_value_out_of_its_range_is_refused(key, value, said):
    assert message(loading.check, loading.from_flat({key: value})).startswith(said)


def test_a_value_at_the_edge_of_its_range_is_taken():
    values = {"seed": 2**32 - 1, "seeds.order": 0, "checkpoint.every": "5 percent"}
    values |= {"early_stop.patience": 2, "data.eval": "test", "optim.warmup": "0 steps"}
    loading.check(loading.from_flat(values))


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
