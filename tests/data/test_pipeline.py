"""What of a dataset is used, in which order, and from where."""

import jax
import numpy as np
import pytest

from jaxcls import experiment
from jaxcls.data import decode, sources
from jaxcls.errors import InputError
from jaxcls.experiment.checks import check
from tests.data.test_batches import equal


def built(tiny, **changes):
    return experiment.build(tiny(**{"data.threads": 1, **changes}))


def host(batches):
    return [jax.tree.map(np.asarray, batch) for batch in batches]


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("extra", [{}, {"data.classes": "2-5"}, {"data.balance": True}])
def test_resident_batches_are_those_that_are_streamed(tiny, devices, extra):
    changes = {"mesh.devices": devices, "length": "25 steps", **extra}
    streamed = built(tiny, **{"data.resident": "off", **changes})
    resident = built(tiny, **{"data.resident": "on", **changes})
    one, other = next(resident.train_batches()).image, next(streamed.train_batches()).image
    assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
    for start in (0, 19):
        equal(host(resident.train_batches(start)), host(streamed.train_batches(start)))
    evaluated = [
        host(exp.eval_batches("train[90%:]", "data.eval")) for exp in (resident, streamed)
    ]
    equal(*evaluated)


def test_what_is_resident_is_decoded_once(tiny, monkeypatch):
    exp = built(tiny, **{"length": "60 steps"})
    reads = []
    whole = sources.Source.read

    def counting(self, indices):
        reads.append(len(indices))
        return whole(self, indices)

    monkeypatch.setattr(sources.Source, "read", counting)
    for _ in exp.train_batches():
        pass
    n = exp.plan.examples
    assert n <= sum(reads) < n + 256  # The last batch of the decoding is padded.
    for _ in exp.train_batches(30):
        pass
    assert sum(reads) < n + 256


def test_random_host_crops_are_streamed_or_refused(tiny):
    ops = {"data.train_ops": "decode(1) | random_resized_crop(8)"}
    images = [host(built(tiny, **ops, **{"data.resident": "auto"}).train_batches())]
    images.append(host(built(tiny, **ops, **{"data.resident": "off"}).train_batches()))
    equal(*images)
    with pytest.raises(InputError, match="random_resized_crop, which gives other pixels"):
        next(built(tiny, **ops, **{"data.resident": "on"}).train_batches())


def labels_of(exp):
    split = exp.config.data.train
    return exp.selection.dataset.labels(split, "data.train")


@pytest.mark.parametrize("resident", ["on", "off"])
def test_only_the_chosen_classes_are_seen_and_they_count_from_0(tiny, resident):
    chosen = [3, 7, 9]
    exp = built(tiny, **{"data.classes": "7, 3,9", "data.resident": resident})
    assert exp.selection.class_names == ("3", "7", "9")
    assert exp.programs.state_shapes.params["head"]["kernel"].shape[-1] == 3
    assert exp.plan.examples == int(np.isin(labels_of(exp), chosen).sum())
    seen = {}
    for batch in host(exp.train_batches()):
        seen |= {x.tobytes(): int(y) for x, y in zip(batch.image, batch.label, strict=True)}
    whole = experiment.build(tiny()).selection.dataset.source("train", "data.train")
    for png, label in whole.read(np.arange(len(whole))):
        pixels = decode.decode(1)(png, None).tobytes()
        assert pixels not in seen or chosen[seen.pop(pixels)] == label
    assert not seen


def test_a_fraction_is_of_the_training_examples_only(tiny):
    exp = built(tiny, **{"data.fraction": 0.2})
    counts = np.bincount(labels_of(exp))
    assert exp.plan.examples == np.rint(counts * 0.2).sum()
    assert exp.data.examples("test") == 360
    some = built(tiny, **{"data.fraction": 0.2, "data.classes": "0-4"})
    labels = some.selection.dataset.labels("test", "data.test")
    assert some.data.examples("test") == (labels < 5).sum()
    assert exp.data.examples("eval") == built(tiny).data.examples("eval")


def pictures(exp, split, key):
    """The bytes of each image of a split, in its order."""
    records = exp.selection.records(split, key)
    return [png for png, _ in records.read(np.arange(len(records)))]


def test_a_seed_of_the_split_draws_train_and_eval_of_both_and_leaves_test(tiny):
    parts = {"data.train": "train[:80%]", "data.eval": "train[90%:]"}
    plain = built(tiny, **parts)
    texts = {"data.train": "train[:80%]", "data.eval": "train[90%:]", "data.test": "test"}
    before = {key: pictures(plain, text, key) for key, text in texts.items()}
    both = sorted(before["data.train"] + before["data.eval"])
    drawn = []
    for seed in (0, 1):
        exp = built(tiny, **parts, **{"data.split_seed": seed})
        now = {key: pictures(exp, text, key) for key, text in texts.items()}
        assert sorted(now["data.train"] + now["data.eval"]) == both
        assert now["data.test"] == before["data.test"]
        for key, found in now.items():
            assert len(found) == len(before[key]) == exp.selection.count(texts[key], key)
        # The labels are those of the records, and the batches of evaluations hold them.
        records = exp.selection.records("train[90%:]", "data.eval")
        labels = [label for _, label in records.read(np.arange(len(records)))]
        seen = [*host(exp.eval_batches("train[90%:]", "data.eval"))]
        masks = [batch.mask.astype(bool) for batch in seen]
        evaluated = [b.label[mask] for b, mask in zip(seen, masks, strict=True)]
        np.testing.assert_array_equal(np.concatenate(evaluated), labels)
        assert exp.selection.train_labels().sum() + sum(labels) == (
            plain.selection.labels("train[:80%]", "data.train").sum()
            + plain.selection.labels("train[90%:]", "data.eval").sum()
        )
        drawn.append(set(now["data.eval"]))
    # 144 of 1,294 by chance: 16 in common, as with what the slice says, give or take 4.
    for other in (drawn[1], set(before["data.eval"])):
        assert 4 <= len(drawn[0] & other) <= 32


@pytest.mark.parametrize(
    "parts",
    [
        {"data.eval": ""},
        {"data.train": "train", "data.eval": "train[90%:]"},
        {"data.train": "train", "data.eval": "test"},
        {
            "data.train": "train[:50%]",
            "data.eval": "train[90%:]",
            "data.test": "train[95%:]",
        },
    ],
)
def test_a_split_that_cannot_be_drawn_anew_is_refused(tiny, parts):
    with pytest.raises(InputError, match=r"data\.split_seed=3 draws .* two parts of one"):
        _ = built(tiny, **parts, **{"data.split_seed": 3}).plan


def test_balance_gives_every_class_equally_often(tiny):
    exp = built(tiny, **{"data.balance": True, "length": "3 epochs", "batch_size": 100})
    labels = np.concatenate([b.label for b in host(exp.train_batches())])
    for epoch in range(2):
        counts = np.bincount(
            labels[epoch * exp.plan.examples :][: exp.plan.examples], minlength=10
        )
        assert counts.max() - counts.min() <= 1
    assert exp.implied()["order"] == "philox-balanced-1"


def test_a_run_is_not_scored_on_other_data_than_its_own(tiny):
    exp = built(tiny)
    facts = exp.selection.facts._replace(splits={"train": 1437, "test": 300})
    with pytest.raises(InputError, match=r"the data changed since the run began: splits"):
        experiment.build(exp.config, facts).selection.records("test", "data.test")


@pytest.mark.parametrize(
    ("key", "split"), [("data.train", "train[:90%]"), ("--split", "test")]
)
def test_evaluation_of_any_split_is_by_eval_ops_and_counts_it(tiny, key, split):
    changes = {"data.train_ops": "decode(1) | resize(4)", "data.eval_ops": "decode(1)"}
    exp = built(tiny, **changes, **{"data.fraction": 0.3, "data.resident": "on"})
    batches = host(exp.eval_batches(split, key))
    assert {batch.image.shape[1:] for batch in batches} == {(8, 8, 1)}
    n = sum(int(batch.mask.sum()) for batch in batches)
    assert n == (exp.plan.examples if key == "data.train" else 360)


def test_a_size_that_grows_is_for_training_only(tiny):
    exp = built(tiny, **{"data.eval_ops": GROWING["data.train_ops"]})
    with pytest.raises(InputError, match="a size grows in training only"):
        _ = exp.data.eval_shape
    with pytest.raises(InputError, match="must be a whole number"):
        _ = built(tiny, **{"data.train_ops": "random_resized_crop(())"}).data.train_shapes


GROWING = {
    "data.train_ops": "decode(1) | random_resized_crop(((0, 6), (0.25, 8), (0.7, 12)))",
    "model.name": "resnet18(stem='small', width=4, stages=(1,))",
}


def test_sizes_grow_with_the_run_and_a_resume_finds_its_place(tiny):
    exp = built(tiny, **GROWING, **{"length": "20 steps"})
    assert exp.data.train_shapes == [(6, 6, 1), (8, 8, 1), (12, 12, 1)]
    walked = host(exp.train_batches())
    sides = [batch.image.shape[1] for batch in walked]
    assert sides == [6] * 5 + [8] * 9 + [12] * 6
    for start in (3, 5, 13, 14, 19):
        equal(host(exp.train_batches(start)), walked[start:])


def test_growing_takes_the_same_examples_and_boxes_as_one_size(tiny):
    fixed = {"data.train_ops": "decode(1) | random_resized_crop(12)"}
    ours = host(built(tiny, **GROWING, **{"length": "20 steps"}).train_batches())
    theirs = host(built(tiny, **{**GROWING, **fixed}, length="20 steps").train_batches())
    equal(ours[14:], theirs[14:])
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.label, b.label)


@pytest.mark.slow
def test_a_step_is_compiled_for_every_size(tiny):
    exp = built(tiny, **GROWING, **{"length": "4 steps", "augment": "flip"})
    state, losses = exp.init(), []
    for batch in exp.train_batches():
        state, scores = exp.programs.train_step(state, batch)
        losses.append(float(scores["loss"]))
    assert int(state.step) == 4
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("size", ["((0.1, 6),)", "((0, 6), (0, 8))", "((0, 6), (1.0, 8))"])
def test_sizes_that_do_not_start_at_0_and_rise_are_refused(tiny, size):
    exp = built(tiny, **{"data.train_ops": f"decode | random_resized_crop({size})"})
    with pytest.raises(InputError, match=r"must rise from 0 to below 1"):
        _ = exp.data.train_shapes


def test_a_model_of_one_size_refuses_sizes_that_grow(tiny):
    exp = built(tiny, **{"data.train_ops": GROWING["data.train_ops"]})
    with pytest.raises(InputError, match=r"cannot take \d+x\d+; end data\.train_ops"):
        check(exp)
