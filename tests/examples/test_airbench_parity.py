"""The plug-in of the speed records beside their network in PyTorch."""

import sys

import pytest

from jaxcls.config import plugins
from tests.conftest import ROOT
from tests.models.test_parity import check, randomised, torch

pytestmark = pytest.mark.slow
plugins.load(str(ROOT / "examples/airbench.py"), "plugins")


class Speedrun(torch.nn.Module):
    """The speed records' network in PyTorch, by our names, as their author defines it."""

    def __init__(self, widths, convs):
        super().__init__()
        self.whiten = torch.nn.Conv2d(3, 24, 2)
        before = 24
        for i, width in enumerate(widths, 1):
            setattr(self, f"block{i}", SpeedrunBlock(before, width, convs))
            before = width
        self.blocks = len(widths)
        self.head = torch.nn.Linear(before, 10, bias=False)

    def forward(self, x):
        x = torch.nn.functional.gelu(self.whiten(x))
        for i in range(1, self.blocks + 1):
            x = getattr(self, f"block{i}")(x)
        return self.head(torch.nn.functional.max_pool2d(x, 3).flatten(1)) / 9


class SpeedrunBlock(torch.nn.Module):
    def __init__(self, before, width, convs):
        super().__init__()
        for n in range(1, convs + 1):
            given = before if n == 1 else width
            conv = torch.nn.Conv2d(given, width, 3, padding="same", bias=False)
            norm = torch.nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
            norm.weight = None  # It has no scale, and adds a bias.
            setattr(self, f"conv{n}", conv)
            setattr(self, f"norm{n}", norm)
        self.convs = convs

    def forward(self, x):
        gelu = torch.nn.functional.gelu
        x = gelu(self.norm1(torch.nn.functional.max_pool2d(self.conv1(x), 2)))
        y = self.norm2(self.conv2(x))
        return gelu(y if self.convs == 2 else x + self.norm3(self.conv3(gelu(y))))


@pytest.mark.parametrize(("widths", "convs"), [((64, 256, 256), 2), ((128, 384, 512), 3)])
def test_the_speed_records_net_is_its_authors(widths, convs):
    torch.manual_seed(0)
    theirs = randomised(Speedrun(widths, convs))
    ours = sys.modules["airbench"].Airbench(num_classes=10, widths=widths, convs=convs)
    check(theirs, ours, "pytorch", 32)
