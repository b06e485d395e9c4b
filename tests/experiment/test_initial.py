"""What a run starts from: another run, a file; and what such weights tell."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxcls import commands, experiment
from jaxcls.config import loading
from jaxcls.errors import InputError, StoppedError
from jaxcls.evaluation import scoring
from jaxcls.experiment import initial
from jaxcls.export import writing
from jaxcls.export.formats import safetensors
from jaxcls.export.formats.model import Asked
from jaxcls.models import naming, weights
from jaxcls.models.weights import Preprocessing
from jaxcls.runs import checkpoint
from jaxcls.runs.workdir import Workdir
from jaxcls.studies import reproducing
from jaxcls.training import train
from tests.modules import built, shapes
from tests.settings import digits
from tests.torchbytes import Built, Call, Named, saved, zipped

MODEL = "cnn(widths=(4, 8), dense=16, dropout=0.2, batch_norm=True)"
BODY = "^(?!head/)"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """The folder of a tiny run on all ten digits."""
    folder = tmp_path_factory.mktemp("trained") / "digits"
    values = {
        "length": "6 steps",
        "model.name": MODEL,
        "data.test": "",
        "data.eval_ops": "decode(1) | resize(8)",
        "ema.decay": 0.5,
        "best.metric": "ema_loss",
    }
    train.run(experiment.build(digits(data_dir, **values)), str(folder))
    return folder


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The same weights as a file."""
    file = tmp_path_factory.mktemp("exported") / "digits.safetensors"
    exp, _, _, saved = scoring.load(str(trained), "best", {})
    safetensors.write(writing.model_of(exp, saved), file, Asked())
    return file


def message(config):
    with pytest.raises(InputError) as refused:
        _ = experiment.build(config).initial
    text = str(refused.value)
    assert "\n" not in text
    return text


def averaged(folder):
    """{path: array} of the average of the best checkpoint, read without `initial`."""
    *_, saved = scoring.load(str(folder), "best", {})
    return naming.flatten(saved["ema"])


def test_a_run_or_its_file_starts_what_predicts_with_it(tiny, trained, exported):
    exp = experiment.build(tiny(**{"init.weights": str(trained)}))
    state = exp.init()
    start = {"params": state.params, "batch_stats": state.batch_stats}
    before = averaged(trained)
    file = experiment.build(tiny(**{"init.weights": str(exported)})).initial.arrays
    for found in (naming.flatten(start), naming.flatten(state.ema), file):
        assert found.keys() == before.keys()
        for path, leaf in found.items():
            np.testing.assert_array_equal(leaf, before[path])
    assert exp.initial.notes == [
        f"starting from {trained}: 14 of 14 arrays, by pytorch's names"
    ]


def test_another_form_of_the_model_is_refused_of_a_file_and_said_of_a_run(
    tiny, trained, exported
):
    """No array of a cnn tells its pooling. A run may be tuned with another by intent."""
    more_dropout = tiny(
        **{"model.name": MODEL.replace("0.2", "0.5"), "init.weights": str(exported)}
    )
    assert len(experiment.build(more_dropout).initial.notes) == 1
    values = {"model.name": MODEL.replace("cnn(", "cnn(pool='mean', ")}
    said = message(tiny(**values, **{"init.weights": str(exported)}))
    told = "of a model with pool='max' (here 'mean')"
    assert said.endswith(f'it is {told}; give model.name="{MODEL}"')
    for place, head in ((trained, "keep"), (trained, "fresh"), (exported, "fresh")):
        config = tiny(**values, **{"init.weights": str(place), "init.head": head})
        assert told in experiment.build(config).initial.notes[0]


@pytest.mark.slow
def test_two_classes_get_a_fresh_head_and_what_is_frozen_keeps_every_bit(
    tiny, trained, tmp_path, capsys
):
    values = {"init.weights": str(trained), "init.head": "auto", "optim.freeze": BODY}
    tuned = tiny(**values, **{"data.classes": "3, 8"})
    exp = experiment.build(tuned)
    train.run(exp, str(tmp_path / "tuned"))
    said = capsys.readouterr().out
    assert "a fresh head for 2 classes; there it has 10" in said
    folder = Workdir(tmp_path / "tuned")
    state = checkpoint.restore(folder.checkpoints, 12, exp.programs.state_like)
    before, started = averaged(trained), exp.init()
    assert state.params["head"]["kernel"].shape == (16, 2)
    for tree in ({"params": state.params, "batch_stats": state.batch_stats}, state.ema):
        for path, leaf in naming.flatten(tree).items():
            if path.startswith("params/head/"):
                assert (np.asarray(leaf) != started.params["head"][path[12:]]).any()
            else:
                assert np.asarray(leaf).tobytes() == np.asarray(before[path]).tobytes()
    # Nor does the optimizer keep anything for what is frozen.
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) < 3 * (16 * 2 + 2)


@pytest.mark.parametrize(
    ("head", "classes", "is_kept"),
    [("keep", "", True), ("auto", "", True), ("fresh", "", False), ("auto", "0-4", False)],
)
def test_the_head_is_kept_where_the_classes_are_the_same(
    tiny, trained, head, classes, is_kept
):
    more = {"init.weights": str(trained), "init.head": head, "data.classes": classes}
    exp = experiment.build(tiny(**more))
    assert ("params/head/kernel" in exp.initial.arrays) == is_kept
    assert any("fresh head" in note for note in exp.initial.notes) != is_kept


def test_as_many_classes_of_other_names_get_a_fresh_head_or_are_kept_with_a_word(
    tiny, trained, exported, tmp_path
):
    read = weights.read(str(exported), "x")
    other = tmp_path / "other.safetensors"
    weights.write(other, read.tensors, None, [f"class {i}" for i in range(10)])
    kept = experiment.build(tiny(**{"init.weights": str(other)})).initial
    assert kept.notes[1] == "the head is kept, though its classes have other names there"
    auto = experiment.build(tiny(**{"init.weights": str(other), "init.head": "auto"}))
    assert "params/head/kernel" not in auto.initial.arrays
    # The same names in another order are no other way to write them.
    skipped = experiment.build(
        tiny(**{"init.weights": str(other), "init.skip": "head"})
    ).initial
    assert not any(path.startswith("params/head/") for path in skipped.arrays)
    assert len(skipped.notes) == 1
    turned = tmp_path / "turned.safetensors"
    weights.write(turned, read.tensors, None, [str(i) for i in (1, 0, *range(2, 10))])
    with pytest.raises(InputError, match=r"what is '1' there is '0' here; give init.head="):
        _ = experiment.build(tiny(**{"init.weights": str(turned)})).initial


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"data.classes": "3, 8"},
            ["head.weight 10x16, not 2x16", "init.head='fresh' replaces the head"],
        ),
        (
            {"model.name": "resnet18"},
            ["for model.name=resnet18: it holds no layer", "by torchvision's or timm's"],
        ),
        ({"init.weights": "x" * 5000}, ["cannot be read"]),
    ],
)
def test_weights_that_do_not_fit_are_one_line(tiny, trained, changes, expected):
    said = message(tiny(**{"init.weights": str(trained), **changes}))
    assert all(each in said for each in expected)


def test_another_form_of_the_same_family_is_refused_unless_it_is_named(tiny, trained):
    narrow = MODEL.replace("dense=16", "dense=8")
    more = {"init.weights": str(trained), "model.name": narrow}
    said = message(tiny(**more))
    assert "has 3 of another shape (dense.bias 16, not 8" in said
    assert "name in init.skip what may differ" in said
    exp = experiment.build(tiny(**more, **{"init.skip": "dense|head"}))
    assert sorted(exp.initial.arrays) == [
        path for path in averaged(trained) if "dense" not in path and "head" not in path
    ]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-40]), "download it again"),
        (lambda file: file.write_bytes(b""), "digits.safetensors"),
        (lambda file: file.unlink(), "there is no such file"),
        (lambda file: (file.unlink(), file.mkdir()), "is a folder"),
    ],
)
def test_a_file_that_is_damaged_or_gone_is_one_line(
    tiny, exported, tmp_path, damage, expected
):
    file = tmp_path / "digits.safetensors"
    shutil.copy(exported, file)
    damage(file)
    assert expected in message(tiny(**{"init.weights": str(file)}))


def test_a_run_whose_checkpoint_is_damaged_or_gone_is_one_line(tiny, trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    (file,) = (folder / "checkpoints").glob("*/meta/metadata")
    meta = json.loads(file.read_text())
    meta["digests"]["ema/params/head/bias"] = "0" * 16
    del meta["seal"]
    file.write_text(json.dumps({**meta, "seal": checkpoint.seal_of(meta)}))
    said = message(tiny(**{"init.weights": str(folder)}))
    assert said.startswith(
        f"init.weights={folder}: its best checkpoint cannot be read (the"
    )
    assert "digest of ema/params/head/bias differs" in said
    shutil.rmtree(folder / "checkpoints")
    assert "holds no checkpoint" in message(tiny(**{"init.weights": str(folder)}))


@pytest.mark.slow
def test_the_weights_are_part_of_what_a_run_is_and_their_place_is_not(
    tiny, exported, tmp_path
):
    here, moved, other = (tmp_path / f"{name}.safetensors" for name in "abc")
    shutil.copy(exported, here)
    read = weights.read(str(here), "x")
    changed = {name: array + 1 for name, array in read.tensors.items()}
    weights.write(other, changed, None, ())
    folder = str(tmp_path / "run")

    def start(place, until):
        exp = experiment.build(tiny(**{"init.weights": str(place)}))
        with pytest.raises(StoppedError):
            train.run(exp, folder, until=until)

    start(here, until=2)
    assert Workdir(folder).read()["implied"]["weights"] == read.fingerprint
    here.rename(moved)
    start(here, until=3)  # A resume has all it needs.
    start(moved, until=4)
    for place in (other, ""):
        with pytest.raises(InputError, match="weights was"):
            start(place, until=5)
    for is_done in (False, True):
        exp = experiment.build(tiny(**{"init.weights": str(moved)}))
        assert train.run(exp, folder).already == is_done
    for place in (other, ""):
        with pytest.raises(
            InputError, match=r"what init\.weights name changed: weights was"
        ):
            start(place, until=5)


def test_a_folder_with_another_config_is_no_run(tiny, tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "resnet50"}')
    (tmp_path / "weights.safetensors").write_bytes(b"")
    said = message(tiny(**{"init.weights": str(tmp_path)}))
    assert "is a folder, and must be a file of weights" in said


def test_a_run_on_more_devices_than_there_are_is_a_start(tiny, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "wide")
    file = tmp_path / "wide" / "config.json"
    saved = json.loads(file.read_text())
    saved["config"]["mesh.devices"] = 64
    file.write_text(json.dumps(saved))
    exp = experiment.build(tiny(**{"init.weights": str(tmp_path / "wide")}))
    assert len(exp.initial.arrays) == 14


# What weights tell.


ALL = dict.fromkeys(initial.TOLD, "weights")


def told(tiny, folder, preprocessing):
    """The three texts after `initial.resolved`, from a file that tells `preprocessing`."""
    file = folder / "told.safetensors"
    weights.write(file, {"x": np.zeros(1, np.float32)}, preprocessing, ())
    made = loading.flat(initial.resolved(tiny(**ALL, **{"init.weights": str(file)})))
    return [made[key] for key in initial.TOLD]


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        (
            Preprocessing((0.5,) * 3, (0.25,) * 3, 224, 0.95, "bicubic"),
            [
                "mean_std((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))",
                "decode | random_resized_crop(224, filter='bicubic')",
                "decode | resize_short(235, 'bicubic', 'truncate') | center_crop(224)",
            ],
        ),
        (
            Preprocessing((0.1,), (0.2,), 28, 1.0, "bilinear", "squash"),
            [
                "mean_std((0.1,), (0.2,))",
                "decode(1) | random_resized_crop(28, filter='bilinear')",
                "decode(1) | resize(28, 'bilinear') | center_crop(28)",
            ],
        ),
    ],
)
def test_a_file_tells_pixels_sizes_and_filter(tiny, tmp_path, preprocessing, expected):
    assert told(tiny, tmp_path, preprocessing) == expected


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        (None, "does not tell what images it was made for; give normalize='imagenet'"),
        (
            Preprocessing((0.5,) * 3, (0.5,) * 3, 32, 0.9, "bicubic", "border"),
            "with a border, which is not done here; give data.eval_ops",
        ),
    ],
)
def test_what_cannot_be_told_is_asked_for(tiny, tmp_path, preprocessing, expected):
    with pytest.raises(InputError, match=expected):
        told(tiny, tmp_path, preprocessing)


def test_without_weights_there_is_nothing_to_tell(tiny):
    with pytest.raises(InputError, match="there are none; try normalize='imagenet'"):
        _ = experiment.build(tiny(normalize="weights")).config


def test_a_resolved_experiment_holds_the_texts_of_its_run_alone(tiny, trained):
    given = tiny(**{"init.weights": str(trained), **ALL})
    made = loading.flat(experiment.build(given).config)
    assert [made[key] for key in ALL] == ["unit", "decode(1)", "decode(1) | resize(8)"]
    assert given.normalize == "weights"


def test_a_checkpoint_of_another_trainer_starts_a_run(tiny, exported, tmp_path):
    """As Lightning writes it: a prefix, and objects beside, of which nothing is made."""
    read = weights.read(str(exported), "x").tensors
    prefixed = {f"model.{name}": values for name, values in read.items()}
    arguments = Built(Call(Named("argparse", "Namespace"), ()), {"lr": 0.1})

    def wrap(entries):
        state = {"state": {0: {"step": 3}}, "param_groups": []}
        rest = {"optimizer_states": [state], "hyper_parameters": arguments}
        return {"epoch": 3, "state_dict": entries, **rest}

    file = tmp_path / "last.ckpt"
    file.write_bytes(saved(prefixed, zipped, wrap))
    found = experiment.build(tiny(**{"init.weights": str(file)})).initial
    expected = experiment.build(tiny(**{"init.weights": str(exported)})).initial
    assert found.arrays.keys() == expected.arrays.keys()
    for path, values in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[path], values)
    assert found.notes == [
        f"starting from {file}: all names without their prefix 'model.'; 14 of 14 arrays,"
        " by pytorch's names"
    ]


def test_positions_are_resampled_to_another_size_of_image(tiny, tmp_path):
    text = "vit_ti_16(depth=1)"
    module = built(text, num_classes=10)
    made = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes(module, 32)[1])
    file = tmp_path / "vit.safetensors"
    weights.write(file, naming.to_theirs(made, module.namings()["timm"]), None, ())
    ops = dict.fromkeys(("data.train_ops", "data.eval_ops"), "decode(3) | resize(64)")
    exp = experiment.build(tiny(**{"model.name": text, "init.weights": str(file), **ops}))
    assert exp.initial.arrays["params/position"].shape == (1, 17, 192)
    assert "positions resampled from 2x2 to 4x4" in exp.initial.notes[0]


@pytest.mark.slow
def test_a_run_that_started_from_weights_is_made_again_where_they_are(
    tiny, exported, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(reproducing, "_set_environment", lambda start: None)
    here, moved = tmp_path / "here.safetensors", tmp_path / "moved.safetensors"
    shutil.copy(exported, here)
    folder, pack = str(tmp_path / "run"), tmp_path / "run.tar.gz"
    values = {"length": "2 steps", "init.weights": str(here)}
    train.run(experiment.build(tiny(**values)), folder)
    assert commands.main(["reproduce", f"--workdir={folder}", f"--pack={pack}"]) == 0
    here.rename(moved)
    again = [f"--workdir={pack}", f"--config.data.dir={tiny().data.dir}"]
    with pytest.raises(
        InputError, match=r"here.safetensors: there is no .* sha256:\S+: say"
    ):
        commands.main(["reproduce", *again])
    assert commands.main(["reproduce", *again, f"--config.init.weights={moved}"]) == 0
    assert "bit for bit up to step 2" in capsys.readouterr().out
