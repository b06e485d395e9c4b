"""Streams of randomness: each moves by its own seed alone, and none is compiled in."""

import jax
import numpy as np
import pytest

from jaxcls import experiment
from jaxcls.config.knobs import STREAMS
from jaxcls.errors import InputError
from jaxcls.experiment import recipe
from jaxcls.training import train

LENGTH = {"length": "4 steps", "eval.every": "2 steps", "checkpoint.every": "2 steps"}


def of_streams(exp):
    """What each stream decides at the first step, as bytes."""
    state, batch = exp.init(), next(exp.train_batches())
    _, keys = recipe.keys(exp.config)
    image = np.zeros(batch.image.shape, np.uint8)
    image[:, 3:5, 3:5] = 200  # Crops and mixes show, whatever the order.
    index = np.arange(len(image), dtype=np.int32)
    same = batch._replace(image=image, label=index % 10, index=index)
    inputs = jax.jit(exp.recipe.inputs)(keys["augment"], 0, jax.device_put(same))
    return {
        "init": b"".join(
            np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.params)
        ),
        "order": np.asarray(batch.index).tobytes(),
        "augment": b"".join(np.asarray(each).tobytes() for each in inputs),
        "dropout": np.asarray(jax.random.key_data(keys["dropout"])).tobytes(),
    }


@pytest.fixture(scope="module")
def at_zero():
    return {}


@pytest.mark.parametrize("stream", STREAMS)
def test_the_seed_of_a_stream_moves_that_stream_alone(tiny, at_zero, stream):
    exp = experiment.build(tiny())
    before = at_zero.setdefault("streams", of_streams(exp))
    after = of_streams(exp.reseeded({f"seeds.{stream}": 7}))
    assert {name for name in STREAMS if before[name] != after[name]} == {stream}


@pytest.mark.parametrize("stream", ["init", "augment"])
def test_crops_of_the_host_move_with_augmentation(tiny, stream):
    ops = {"data.train_ops": "decode(1) | random_resized_crop(8)", "augment": "", "mix": ""}
    exp = experiment.build(tiny(**ops, **{"data.eval_ops": "decode(1) | resize(8)"}))
    batches = [
        next(each.train_batches()) for each in (exp, exp.reseeded({f"seeds.{stream}": 7}))
    ]
    images = [np.asarray(batch.image) for batch in batches]
    np.testing.assert_array_equal(*(batch.index for batch in batches))
    assert (images[0] != images[1]).any() == (stream == "augment")


@pytest.mark.parametrize("stream", STREAMS)
def test_images_for_a_model_to_start_from_move_with_init(tiny, stream):
    exp = experiment.build(tiny())
    samples = [each.data.sample(50) for each in (exp, exp.reseeded({f"seeds.{stream}": 7}))]
    assert (samples[0] != samples[1]).any() == (stream == "init")


def test_the_four_streams_together_are_the_seed(tiny):
    exp = experiment.build(tiny())
    by_stream = exp.reseeded({f"seeds.{stream}": 7 for stream in STREAMS})
    assert of_streams(by_stream) == of_streams(exp.reseeded({"seed": 7}))


@pytest.mark.slow
def test_a_run_of_a_reseeded_experiment_is_that_of_a_new_one_bit_for_bit(tiny, tmp_path):
    files = ("metrics.jsonl", "digests.jsonl")
    seeds = [{"seed": 3}, {"seeds.order": 5}, {"seed": 0, "seeds.order": -1}]
    exp = experiment.build(tiny(**LENGTH))
    train.run(exp, str(tmp_path / "first"))
    step = exp.programs.train_step
    for i, given in enumerate(seeds):
        exp = exp.reseeded(given)
        train.run(exp, str(tmp_path / f"again{i}"))
        assert exp.programs.train_step is step
        fresh = experiment.build(exp.config)
        train.run(fresh, str(tmp_path / f"new{i}"))
        for file in files:
            one, other = (tmp_path / f"{name}{i}" / file for name in ("again", "new"))
            assert one.read_bytes() == other.read_bytes()
    first = (tmp_path / "first" / "digests.jsonl").read_bytes()
    assert (tmp_path / "again2" / "digests.jsonl").read_bytes() == first
    assert (tmp_path / "again1" / "digests.jsonl").read_bytes() != first


def test_a_reseeded_experiment_leaves_the_other_as_it_was(tiny):
    exp = experiment.build(tiny())
    before = of_streams(exp)
    other = exp.reseeded({"seed": 9})
    of_streams(other)
    assert of_streams(exp) == before
    assert (exp.config.seed, other.config.seed) == (0, 9)
    with pytest.raises(InputError, match=r"seeds\.order=-2 must be at least -1"):
        exp.reseeded({"seeds.order": -2})


def test_the_seed_of_the_split_moves_the_examples_and_no_stream(tiny):
    parts = {"data.train": "train[:90%]", "data.eval": "train[90%:]"}
    exp = experiment.build(tiny(**parts))
    other = exp.reseeded({"data.split_seed": 7})
    fresh = experiment.build(tiny(**parts, **{"data.split_seed": 7}))
    used = [e.selection.used("train[90%:]", "data.eval") for e in (exp, other, fresh)]
    np.testing.assert_array_equal(used[1], used[2])
    assert set(used[0].tolist()) != set(used[1].tolist())
    before, after = of_streams(exp), of_streams(other)
    assert before["init"] == after["init"]
    assert before["dropout"] == after["dropout"]
    assert exp.implied() == other.implied()


def test_the_seed_of_a_fraction_moves_the_examples_and_no_stream(tiny):
    exp = experiment.build(tiny(**{"data.fraction": 0.5}))
    other = exp.reseeded({"data.fraction_seed": 7})

    def used(each):
        return set(each.selection.used(each.config.data.train, "data.train").tolist())

    assert len(used(exp)) == len(used(other)) < 1293 / 2 + 10
    # Half of either half, by chance.
    assert 0.35 < len(used(exp) & used(other)) / len(used(exp)) < 0.65
    fresh = experiment.build(tiny(**{"data.fraction": 0.5, "data.fraction_seed": 7}))
    assert used(other) == used(fresh)
    assert other.data.examples("train") == exp.data.examples("train") == len(used(exp))
    before, after = of_streams(exp), of_streams(other)
    assert before["init"] == after["init"]
    assert before["dropout"] == after["dropout"]
    assert of_streams(fresh) == after
    images = [np.asarray(next(each.train_batches()).image) for each in (other, fresh)]
    np.testing.assert_array_equal(*images)
