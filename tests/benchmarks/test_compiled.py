"""No change makes a compiled step worse: the figures of `benchmarks/compiled.json`."""

import json

import pytest

from benchmarks import compiled
from jaxcls.devices import topologies


def test_figures_are_told_as_ratios():
    some = compiled.Figures(2e12, 3e9, 5 * 2**20, 7 * 2**20)
    line = "2.0000 TFLOP, 3.00 GB accessed, temporaries 5 MiB, arguments 7 MiB"
    assert some.line == line
    other = compiled.Figures(1e12, 2e9, 4 * 2**20, 0)
    assert some.over(other) == "FLOP 2.000, bytes 1.500, temporaries 1.250"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "vit_s_16_of_2"])
def test_no_figure_of_a_step_becomes_worse_by_a_hundredth(name):
    table = json.loads(compiled.TABLE.read_text())
    if table["versions"] != compiled.versions():
        pytest.skip(f"the table is of {table['versions']}; .ci/run installs these")
    devices, _ = topologies.described(compiled.SLICE, "--devices")
    now = compiled.ours(compiled.STEPS[name], devices, compiled.BATCH)
    before = compiled.Figures(**table["steps"][name])
    for figure, value in now._asdict().items():
        most = 1.01 * getattr(before, figure)
        assert value <= most, f"{figure}: {value:,} of at most {most:,.0f}"
