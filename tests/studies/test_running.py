"""What a study writes of its runs, from folders alone."""

import json

import pytest

from jaxcls.config import loading
from jaxcls.studies import cells, running
from tests import run_folders


# Each run has a killed start, of which timing.jsonl alone tells 3 s, and one of 5 s.
@pytest.mark.parametrize(
    ("file", "runs", "unknown", "seconds"),
    [("timing.jsonl", 2, 1, 3 + 5 + 5), ("manifest.json", 1, 0, 3 + 5)],
)
def test_a_file_of_the_cost_that_is_damaged_leaves_the_result(
    tmp_path, capsys, file, runs, unknown, seconds
):
    for seed in (0, 1):
        made = run_folders.write(
            tmp_path / f"base/seed-{seed}", run_folders.scored(0.5 + seed / 10), seed=seed
        ).path
        ended = {"devices": ["cpu"], "seconds": 5.0, "reason": "done"}
        manifest = {"format": 1, "starts": [{"devices": ["cpu"]}, ended]}
        (made / "manifest.json").write_text(json.dumps(manifest))
        record = {"step": 4, "kind": "timing", "start": 1, "seconds": 3.0}
        (made / "timing.jsonl").write_text(json.dumps(record) + "\n")
    (made / file).write_text("{damaged\n{}\n")
    study = running.Study(loading.base(), cells.make([], [], 0, 0, "all"), [0, 1], tmp_path)
    result = running.conclude(study, "top1", "base")
    assert result["cells"][0]["figures"]["test_best"]["top1"]["mean"] == pytest.approx(0.55)
    found = json.loads((tmp_path / "cost.json").read_text())
    assert (found["runs"], found["unknown"]) == (runs, unknown)
    assert found["seconds"] == {"CPU": seconds}
    (note,) = capsys.readouterr().out.splitlines()
    assert note.startswith("note: the cost lacks what 1 files do not tell: ")
    assert f"{made / file}" in note
