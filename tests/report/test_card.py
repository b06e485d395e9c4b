"""A reproducibility card: its figures are those of the files, and no text breaks it."""

import json
import re

import numpy as np
import pytest
import scipy.stats

from jaxcls import commands
from jaxcls.config import loading
from jaxcls.config.knobs import KNOBS
from jaxcls.errors import InputError
from jaxcls.report import card
from jaxcls.studies import cells, running
from jaxcls.studies import folder as study_folder
from tests import run_folders

NASTY = ("a|b\nc", "</td><script>`x`", "![i](http://x) *s*\r\n| - |", "\x1b[2J\ud800$&")
TOP1 = [0.90, 0.92, 0.91, 0.95]


def carded(folder, *flags):
    """(the answers of the JSON by section, the Markdown) of a card."""
    assert commands.main(["report", f"--card={folder}", *flags]) == 0
    found = json.loads((folder / "card.json").read_text())
    sections = {k: each["answers"] for k, each in found["sections"].items()}
    return sections, (folder / "card.md").read_text()


def rows(text):
    """{what: value} of all tables of a page of Markdown, unescaped."""
    found = {}
    for line in text.splitlines():
        if line.startswith("|"):
            parts = re.fullmatch(r"\| ((?:[^|\\]|\\.)*) \| ((?:[^|\\]|\\.)*) \|", line)
            if parts:
                what, value = (re.sub(r"\\(.)", r"\1", each) for each in parts.groups())
                found[what] = value
            else:
                assert line == "|---|---|", line
    return found


def wilson(share, n, z=1.959963984540054):
    """Wilson's interval, as he wrote it."""
    middle, half = (
        share + z * z / (2 * n),
        z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)),
    )
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a study of two rates and four seeds."""
    folder = tmp_path_factory.mktemp("studies") / "rates"
    for rate, more in (("0.001", 0.0), ("0.004", 0.02)):
        for seed, value in enumerate(TOP1):
            path = folder / f"optim.lr={rate}" / f"seed-{seed}"
            records = run_folders.scored(value + more * (1 + seed % 2))
            made = run_folders.write(path, records, seed=seed)
            start = {"devices": ["TPU v4"] * 4, "seconds": 10.0 + seed, "commit": "c0ffee"}
            manifest = {"format": 1, "starts": [{**start, "versions": {"jax": "9.9"}}]}
            (made.path / "manifest.json").write_text(json.dumps(manifest))
    config_values = {"batch_size": 7, "data.test": "test"}
    config = loading.from_flat(config_values)
    made = cells.make(["optim.lr=0.001,0.004"], [], 0, 0, "init,order")
    plan = study_folder.StudyPlan(config_values, made, [0, 1, 2, 3])
    study_folder.write_plan(folder, plan)
    running.conclude(
        running.Study(config, made, [0, 1, 2, 3], folder), "top1", made[0].name
    )
    return folder


def test_a_card_of_a_run_is_of_its_files(tiny, whole):
    folder, result = whole(tiny())
    found, text = carded(folder)
    saved = json.loads((folder / "config.json").read_text())
    (start,) = json.loads((folder / "manifest.json").read_text())["starts"]
    final, results = result.record, found["Results"]
    for name in ("loss", "top1", "ema_top1"):
        assert results[name] == final[name]
        assert rows(text)[name] == f"{final[name]:.6g}"
    assert (results["examples"], results["split"]) == (final["n"], final["split"])
    assert results["checkpoint"] == f"best, step {final['best_step']}"
    span = wilson(round(final["top1"] * 360) / 360, 360)
    np.testing.assert_allclose(results["top1, 95 % interval"], span)
    assert "loss, 95 % interval" not in results
    implied, facts = saved["implied"], saved["implied"]["facts"]
    data = found["Data"]
    assert data["fingerprint"] == (facts["fingerprint"] or "unknown")
    assert data["examples of each split"] == facts["splits"]
    assert data["examples used"] == implied["examples"]
    assert data["data.eval"] == saved["config"]["data.eval"]
    assert data["names of classes"] == facts["class_names"]
    apart = {
        key: value
        for key, value in saved["config"].items()
        if KNOBS[key].identity and value != KNOBS[key].default
    }
    assert found["Hyper-parameters"] == {"steps": 12, **apart}
    assert "data.dir" not in text
    assert found["Seeds"] == {"seed": saved["config"]["seed"]}
    code = found["Code"]
    for key in ("jaxcls", "commit", "code", "numerics", "python"):
        assert code[key] == start[key]
    assert {name: code[name] for name in start["versions"]} == start["versions"]
    compute = found["Compute"]
    assert [*compute["device-seconds of all starts"].values()] == [start["seconds"]]
    assert compute["peak memory in bytes"] == {"process_bytes": start["process_bytes"]}
    last = json.loads((folder / "digests.jsonl").read_text().splitlines()[-1])
    told = found["Verification"]["last digest of the state"]
    assert told == {"step": last["step"], "digest": last["digest"]}
    assert found["Verification"]["commands"] == ["jaxcls reproduce --workdir=run"]
    assert {*found["Beyond the folder"].values()} == {"not stated"}
    assert carded(folder) == (found, text)


def test_a_card_of_a_study_is_of_its_files(study):
    found, text = carded(study)
    for cell in json.loads((study / "study.json").read_text())["cells"]:
        values = [run["values"]["test_best"]["top1"] for run in cell["runs"]]
        span = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
        row = found["Results"][f"cell {cell['name']}"]
        assert row["n"] == 4
        assert row["mean"] == pytest.approx(np.mean(values))
        assert row["deviation"] == pytest.approx(np.std(values, ddof=1))
        np.testing.assert_allclose(row["interval"], span)
        assert f"mean: {np.mean(values):.6g}; " in rows(text)[f"cell {cell['name']}"]
    assert found["Results"]["runs"] == {"done": 8, "diverged": 0, "missing": 0}
    assert found["Seeds"] == {"seeds": [0, 1, 2, 3], "a seed varies": ["init, order"]}
    assert found["Choice of hyper-parameters"] == {
        "cells tried": 2,
        "values of optim.lr": ["0.001", "0.004"],
        "selected": "optim.lr=0.004",
        "selected by": "mean top1 on data.eval",
    }
    assert found["Hyper-parameters"]["batch_size"] == 7
    seconds = 4 * 2 * (10 + 11 + 12 + 13)
    assert found["Compute"]["device-seconds of all starts"] == {"TPU v4": seconds}
    assert found["Compute"]["devices of the last start"] == {"TPU v4": 4}
    assert (found["Compute"]["runs"], found["Compute"]["starts"]) == (8, 8)
    assert (found["Code"]["commit"], found["Code"]["jax"]) == ("c0ffee", "9.9")
    assert (found["Data"]["fingerprint"], found["Data"]["classes"]) == ("f1", 2)
    made = found["Verification"]["commands"]
    assert made[0] == "jaxcls reproduce --workdir=rates/optim.lr=0.001/seed-0"
    assert "--verify=CONFIG.py" in made[1]


def test_values_that_differ_between_runs_are_all_named():
    assert card._each(["a", None, "b", "a"]) == ["a", "b"]
    assert card._each([None]) is None


def test_names_that_look_like_markdown_stay_in_their_cells(tmp_path):
    records = run_folders.scored(0.5)
    folder = run_folders.write(
        tmp_path / "r|un", records, facts={"class_names": [*NASTY], "name": NASTY[0]}
    )
    answers = tmp_path / "answers.toml"
    answers.write_text(f"limitations = {json.dumps(NASTY[2])}\n")
    found, text = carded(folder.path, f"--answers={answers}")
    told = rows(text)
    assert told["name"] == "a|b c"
    assert found["Data"]["names of classes"] == [*NASTY]
    names = "a|b c, </td><script>`x`, ![i](http://x) *s* | - |, \\x1b[2J\\ud800$&"
    assert told["names of classes"] == names
    assert told["What are the limits of the claim?"] == "![i](http://x) *s* | - |"
    assert re.search(r"(?<!\\)[<>`]", text) is None
    assert text.startswith("# Reproducibility card of the run r\\|un\n")


def test_a_run_that_has_not_ended_has_a_card_that_says_so(tmp_path):
    folder = run_folders.write(tmp_path / "run").path
    found, _ = carded(folder)
    assert found["Results"] == {"state": "the run has not ended"}
    assert found["Compute"]["device-seconds of all starts"] == {}
    assert "2 more left no record" in found["Compute"]["counted"]


def test_a_figure_that_was_not_finite_is_said(tmp_path):
    records = run_folders.scored(0.5)
    records[-1]["loss"] = None
    found, text = carded(run_folders.write(tmp_path / "run", records).path)
    assert found["Results"]["loss"] == "not finite"
    assert rows(text)["loss"] == "not finite"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('licence = "x"', r"answers 'licence' .*a card asks how_chosen, "),
        ('data_licence = "x"', r"\(did you mean 'data_license'\?\)"),
        ("consent = 3", r"consent=3 must be a text; write consent = "),
        ("[consent]", r"consent=\{\} must be a text"),
        ("consent = ", r"is no TOML file of answers \("),
        ("a = " + "[" * 5000, r"is no TOML file of answers \("),
        (b"\xff = 1", r"is no TOML file of answers \("),
        ("#" * 2**20 + "\n", r"it has more than 1,048,576 bytes"),
        (None, r"is no TOML file of answers \(No such file"),
    ],
)
def test_answers_that_are_none_are_one_line(tmp_path, text, says):
    folder = run_folders.write(tmp_path / "run").path
    file = tmp_path / "answers.toml"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=says) as error:
        commands.main(["report", f"--card={folder}", f"--answers={file}"])
    assert "\n" not in str(error.value)
    assert not (folder / "card.md").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--card={0}", "--workdir={0}"], "--workdir is of a report"),
        (["--card={0}", "--config.data.threads=1"], "--config is of a report"),
        (["--answers={0}/a.toml"], "is of a card; give --card=RUN_OR_STUDY"),
        (["--card={0}", "--output={0}/a.json"], "is where the card's JSON goes"),
        (["--card={0}", "--output={0}/config.md"], "config.json belongs to the run"),
        (["--card={0}/none"], "is not a run's folder"),
    ],
)
def test_flags_that_a_card_has_not_are_refused(tmp_path, flags, says):
    folder = run_folders.write(tmp_path / "run").path
    before = (folder / "config.json").read_bytes()
    with pytest.raises(InputError, match=re.escape(says)):
        commands.main(["report", *(flag.format(folder) for flag in flags)])
    assert (folder / "config.json").read_bytes() == before


def test_records_that_were_changed_have_no_card(tmp_path):
    folder = run_folders.write(tmp_path / "run", run_folders.scored(0.5))
    starts = [{"reason": "done", "records": {"metrics": "0" * 16}}]
    manifest = {"format": 1, "starts": starts}
    (folder.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"metrics\.jsonl does not hold the records that"):
        commands.main(["report", f"--card={folder.path}"])
