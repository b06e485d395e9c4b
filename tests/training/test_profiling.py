"""A run that is traced is the same run."""

import pytest

from jaxcls import experiment
from jaxcls.training import train


def said(folder):
    return [(folder / name).read_bytes() for name in ("metrics.jsonl", "digests.jsonl")]


# The last: the run ends before as many steps were traced.
@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 100])
def test_a_run_that_is_traced_is_the_same_run(tiny, tmp_path, capsys, steps):
    train.run(experiment.build(tiny()), str(tmp_path / "plain"))
    exp = experiment.build(tiny(**{"log.profile": steps}))
    train.run(exp, str(tmp_path / "traced"))
    assert said(tmp_path / "traced") == said(tmp_path / "plain")
    folder = tmp_path / "traced" / "profile"
    said_where = f"profile: a trace of {min(steps, 9)} steps is in {folder}; "
    assert said_where in capsys.readouterr().out
    assert list(folder.glob("plugins/profile/*/*.xplane.pb"))
    assert not (tmp_path / "plain" / "profile").exists()
