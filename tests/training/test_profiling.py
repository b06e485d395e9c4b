"""A run that is traced is the same run."""

import pytest

from jaxcls import experiment
from jaxcls.training import train
from tests.run_folders import record_bytes


# The last: the run ends before as many steps were traced.
@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 100])
def test_a_run_that_is_traced_is_the_same_run(tiny, whole, tmp_path, capsys, steps):
    exp = experiment.build(tiny(**{"log.profile": steps}))
    train.run(exp, str(tmp_path / "traced"))
    assert record_bytes(tmp_path / "traced") == record_bytes(whole(tiny())[0])
    folder = tmp_path / "traced" / "profile"
    said_where = f"profile: a trace of {min(steps, 9)} steps is in {folder}; "
    assert said_where in capsys.readouterr().out
    assert list(folder.glob("plugins/profile/*/*.xplane.pb"))
