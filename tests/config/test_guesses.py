"""What other trainers call our keys: each answer is a key or flag that works."""

import re
import shlex

import pytest

from jaxcls import commands, experiment
from jaxcls.commands import train
from jaxcls.config import guesses, loading
from jaxcls.config.knobs import KNOBS
from jaxcls.errors import InputError

ANSWERS = sorted({guesses.advice(name) for name in guesses.GUESSES})


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_a_key_or_flag_that_works(answer):
    overrides = {}
    for argument in shlex.split(answer.rpartition("give ")[2]):
        flag, _, value = argument.partition("=")
        if flag.startswith("--config."):
            overrides[flag.removeprefix("--config.")] = value
        else:
            assert flag in train.parser().flags()
    experiment.build(loading.load("configs/digits.py", overrides))


@pytest.mark.parametrize(
    ("argv", "said"),
    {
        "--epochs=5": 'give --config.length="5 epochs"',
        "--epochs 7": 'give --config.length="7 epochs"',
        "--batch-size=64": "give --config.batch_size=64",
        "--lr=0.3": "give --config.optim.lr=0.3",
        "--arch=resnet18": "give --config.model.name=resnet18",
        "--model=resnet18(width=8)": "give --config.model.name='resnet18(width=8)'",
        "--workers=4": "give --config.data.threads=4",
        "--resume": "the same command goes on; for another run's folder give --workdir=RUN",
        "--patience=3": "give --config.early_stop.patience=3",
        "--pretrained": "give --config.init.weights=hf:timm/resnet50.a1_in1k",
        "--pretrained=true": "give --config.init.weights=hf:timm/resnet50.a1_in1k",
        "-b 32": "give --config.batch_size=32",
        "--optim.lr=1": "give --config.optim.lr=1",
        "--seed=1": "give --config.seed=1",
    }.items(),
)
def test_a_flag_of_another_trainer_is_answered_with_what_does_it(argv, said):
    with pytest.raises(InputError) as caught:
        train.main(["--config=configs/digits.py", *argv.split()])
    assert str(caught.value) == f"unknown flag {re.split('[= ]', argv)[0]}; {said}"


def test_a_key_of_another_trainer_is_answered_too():
    with pytest.raises(InputError, match=r"'epochs'; give --config\.length=\"5 epochs\""):
        loading.load("configs/digits.py", {"epochs": "3"})


def test_a_config_without_its_flag_is_answered_with_it():
    for argv in (["configs/digits.py"], ["--dry_run", "configs/digits.py", "--workdir=x"]):
        with pytest.raises(InputError, match="has no flag; give --config=configs"):
            train.main(argv)


def test_no_answer_hides_a_key_or_a_flag():
    assert not guesses.GUESSES.keys() & KNOBS.keys()
    assert guesses.advice("nonsense") == ""


def test_a_verb_of_another_trainer_is_answered_with_ours():
    for guess, verb in commands._GUESSES.items():
        assert verb in commands.VERBS
        with pytest.raises(InputError, match=f"unknown verb '{guess}'; it is '{verb}'"):
            commands.main([guess])
