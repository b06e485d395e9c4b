"""Corrupted and attacked examples: against a plain loop, and as `evaluate` shows them."""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import commands, experiment
from jaxcls.data import batches
from jaxcls.evaluation import attacks, corruptions, examples, passes
from jaxcls.evaluation import robustness as robust
from jaxcls.training import train
from tests.settings import digits

SPLIT = "test[:61]"


def keep(logits, labels):
    """top1 and cross-entropy, in NumPy."""
    exp = np.exp(logits.astype(float))
    own = exp[np.arange(len(labels)), labels] / exp.sum(1)
    return {"top1": (logits.argmax(1) == labels).astype(float), "loss": -np.log(own)}


@pytest.mark.slow
def test_figures_are_those_of_a_plain_loop(data_dir):
    exp = experiment.build(digits(data_dir, **{"mesh.devices": 8}))
    variables = {k: exp.init()._asdict()[k] for k in ("params", "batch_stats")}
    given = examples.of_run(exp, SPLIT)
    chosen = [attacks.fgsm(8), attacks.pgd(8, steps=2)]
    names = ["speckle_noise", "contrast"]
    subject = passes.Subject(exp, variables, given, 24)
    by_name = corruptions.named(", ".join(names), "--corruptions")
    found = robust.assess(subject, by_name, chosen, keep)
    records = list(exp.selection.dataset.source(SPLIT, "data.test").read(np.arange(61)))
    images = [batches.transform(exp.data.eval_ops, png, None) for png, _ in records]
    images, labels = np.stack(images), np.array([label for _, label in records])

    def logits(images):
        normalized = exp.recipe.normalize(images)
        return exp.recipe.model.apply(variables, normalized, False, None)[0]

    for name, each in zip(names, found.corrupted, strict=True):
        assert (each.name, each.mean.n) == (name, 61)
        for k, row in enumerate(each.strengths, 1):
            changed = []
            for i, image in enumerate(images):
                drawn = int(batches.example_rng(0, i).random() * 2**53)
                stream = zlib.crc32(name.encode()) * 8 + k
                rng = np.random.Generator(np.random.Philox(key=[drawn, stream]))
                changed.append(corruptions.CORRUPTIONS[name](image, k, rng))
            expected = keep(np.asarray(logits(np.stack(changed))), labels)
            assert row.top1.value == pytest.approx(expected["top1"].mean())
            assert row.loss.value == pytest.approx(expected["loss"].mean(), rel=1e-4)
        mean = np.mean([row.top1.value for row in each.strengths])
        assert each.mean.top1.value == pytest.approx(mean)
        assert each.mean.top1.low <= mean <= each.mean.top1.high
    means = [each.mean.top1.value for each in found.corrupted]
    assert found.mean.top1.value == pytest.approx(np.mean(means))

    @jax.grad
    def gradient(images):
        likely = jax.nn.log_softmax(logits(images))
        return -likely[np.arange(61), labels].sum()

    levels = jnp.asarray(images, jnp.float32)
    stepped = jnp.clip(levels + 8 * jnp.sign(gradient(levels)), 0, 255)
    expected = keep(np.asarray(logits(stepped)), labels)
    fgsm, pgd = found.attacked
    assert (fgsm.kind, fgsm.epsilon, fgsm.row.n) == ("fgsm", 8, 61)
    assert fgsm.row.top1.value == pytest.approx(expected["top1"].mean(), abs=1e-9)
    assert fgsm.row.loss.value == pytest.approx(expected["loss"].mean(), rel=1e-3)
    assert pgd.row.top1.value <= fgsm.row.top1.value


@pytest.mark.slow
def test_a_trained_run_loses_by_strength_and_by_epsilon(data_dir, tmp_path, capsys):
    values = {"length": "8 epochs", "model.name": "cnn(widths=(16, 32), dense=64)"}
    values |= {"ema.decay": 0.9, "best.metric": "ema_top1"}
    folder, file = tmp_path / "run", tmp_path / "all.json"
    train.run(experiment.build(digits(data_dir, **values)), str(folder))
    capsys.readouterr()
    levels = 2, 8, 16, 32
    text = " | ".join(f"{kind}({k})" for kind in ("fgsm", "pgd") for k in levels)
    asked = f"--workdir={folder}", "--corruptions=all", f"--attacks={text}"
    assert commands.main(["evaluate", *asked, f"--json={file}"]) == 0
    out, record = capsys.readouterr().out, json.loads(file.read_text())
    clean = record["headline"]["top1"]["value"]
    assert clean > 0.9
    assert record["weights"] == "ema"
    mean = record["corruptions_mean"]
    assert f" corrupted_top1={mean['top1']['value']:.4g} " in out.splitlines()[0]
    assert (mean["name"], mean["n"]) == ("mean of 12", 360)
    tops = np.array(
        [[x["top1"]["value"] for x in c["strengths"]] for c in record["corruptions"]]
    )
    assert tops.shape == (12, 5)
    assert mean["top1"]["value"] == pytest.approx(tops.mean())
    # 360 examples: a rise of 3 % is beyond noise, and so is any of the mean of twelve.
    assert np.diff(tops, axis=1).max() < 0.03
    assert np.diff(tops.mean(0)).max() < 0
    assert tops.max() < clean + 0.02
    found = {(a["kind"], a["epsilon"]): a["top1"]["value"] for a in record["attacks"]}
    fgsm, pgd = ([found[kind, k] for k in levels] for kind in ("fgsm", "pgd"))
    assert clean >= fgsm[0]
    assert (np.diff(fgsm) < 0).all()
    assert (np.diff(pgd) <= 0).all()
    assert (np.array(pgd) <= fgsm).all()
    assert sum(pgd) < sum(fgsm)
    (line,) = [x for x in out.splitlines() if x.strip().startswith("contrast ")]
    contrast = next(c for c in record["corruptions"] if c["name"] == "contrast")
    values = [f"{x['top1']['value']:.4f}" for x in contrast["strengths"]]
    assert line.split()[-5:] == values
