"""A run that gets nowhere is ended, and one that gets on is not."""

import subprocess
import sys
import time

import pytest

PROGRAM = """
import sys, time
from jaxcls.training.watchdog import Watchdog

with Watchdog({first}, {later}, 0, "process 1 of 4", lambda: print("closed")) as dog:
    dog.beat("compiling", compiles=True)
    time.sleep({compiling})
    for step in range(3):
        dog.beat(f"training, after step {{step}}")
        time.sleep({step})
print("through")
"""


def run(**times):
    code = PROGRAM.format(**times)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_a_phase_that_takes_too_long_is_named_and_ends_the_process_with_70():
    began = time.monotonic()
    done = run(first=20, later=0.3, compiling=0.0, step=60)
    assert time.monotonic() - began < 20
    assert done.returncode == 70
    assert done.stdout == "closed\n"
    assert "process 1 of 4 has got nowhere for 0.3 s: training, after step 0" in done.stderr
    assert "most recent call first" in done.stderr
    assert '"<string>", line 10 in <module>' in done.stderr  # Where it slept.


def test_the_first_step_has_a_limit_of_its_own():
    done = run(first=0.3, later=60, compiling=60, step=0.0)
    assert done.returncode == 70
    assert "for 0.3 s: compiling" in done.stderr


def test_a_disk_that_is_stuck_does_not_keep_the_process():
    code = PROGRAM.format(first=0, later=0.3, compiling=0.0, step=60)
    code = code.replace('lambda: print("closed")', "lambda: time.sleep(60)")
    code = "from jaxcls.training import watchdog\nwatchdog._LAST = 0.2\n" + code
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert time.monotonic() - began < 30
    assert done.returncode == 70
    assert "--config.watchdog.later; 0 is no limit" in done.stderr


@pytest.mark.parametrize("limits", [(30, 0.4), (30, 0), (0, 0)])
def test_a_run_that_gets_on_is_left_alone(limits):
    done = run(first=limits[0], later=limits[1], compiling=0.8, step=0.1)
    assert (done.returncode, done.stdout, done.stderr) == (0, "through\n", "")


SAVE = """
import time
from jaxcls.training.watchdog import Watchdog

with Watchdog(0, 0, 0.4, "the run", lambda: None) as dog:
    dog.beat("training")
    time.sleep(0.8)
    with dog.saving():
        time.sleep({save})
    time.sleep(0.8)
print("through")
"""


@pytest.mark.parametrize(("save", "status"), [(0.1, 0), (60, 70)])
def test_a_run_of_one_process_has_a_limit_in_a_save_alone(save, status):
    code = SAVE.format(save=save)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == status
    assert done.stdout == ("" if status else "through\n")
    said = "watchdog: the run has got nowhere for 0.4 s: saving a checkpoint. A disk or"
    assert done.stderr.startswith(said if status else "")
    assert "Another" not in done.stderr
