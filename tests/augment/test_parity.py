"""What a magnitude means is what torchvision and timm say; as in models/test_parity.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.augment.spaces import AUTOAUGMENT, RANDAUGMENT, SUBPOLICIES, TRIVIALAUGMENT

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]
SIZE = (199, 224)
FACTORS = ("brightness", "color", "contrast", "sharpness")


def ours(space, name, magnitude, sign):
    share, sign = jnp.full(1, magnitude / space.unit), jnp.full(1, float(sign))
    return float(space.ranges[name](share, sign, SIZE)[0])


def snake(name):
    for part in ("X", "Y"):
        name = name.replace(f"{part}Rel", part)
        name = name[: -len(part)] + f"_{part}" if name.endswith(part) else name
    return {"AutoContrast": "autocontrast", "SolarizeAdd": "solarize_add"}.get(
        name.replace("Increasing", ""), name.replace("Increasing", "").lower()
    )


@pytest.mark.parametrize("policy", ["RandAugment", "TrivialAugmentWide", "AutoAugment"])
def test_a_space_is_torchvision_s(torchvision, policy):
    theirs = getattr(torchvision.transforms.autoaugment, policy)()
    if policy == "TrivialAugmentWide":
        space, bins, table = TRIVIALAUGMENT, 31, theirs._augmentation_space(31)
    elif policy == "AutoAugment":
        space, bins, table = AUTOAUGMENT, 10, theirs._augmentation_space(10, SIZE)
    else:
        space, bins = RANDAUGMENT["torchvision"], 31
        table = theirs._augmentation_space(31, SIZE)
    assert {snake(name) for name in table} == set(space.ranges)
    for theirs_name, (magnitudes, signed) in table.items():
        name = snake(theirs_name)
        for step in range(bins) if magnitudes.ndim else []:
            value = float(magnitudes[step])
            for sign in (-1, 1):
                expected = value * sign if signed else value
                expected += name in FACTORS
                if name.startswith("translate"):
                    # Its float32 makes 15.999 of 16 pixels, and 15 of that.
                    expected = int(expected + sign * 1e-4)
                got = ours(space, name, step, sign)
                assert got == pytest.approx(expected, rel=1e-5, abs=1e-4), (name, step)


@pytest.mark.parametrize("policy", ["imagenet", "cifar10"])
def test_autoaugment_s_pairs_are_torchvision_s(torchvision, policy):
    module = torchvision.transforms.autoaugment
    theirs = module.AutoAugment(module.AutoAugmentPolicy(policy)).policies
    pairs = SUBPOLICIES[policy].replace("|", "\n").strip().split("\n")
    assert len(pairs) == len(theirs) == 25
    for pair, expected in zip(pairs, theirs, strict=True):
        for step, (name, probability, magnitude) in zip(
            pair.split(","), expected, strict=True
        ):
            ours_name, ours_probability, ours_magnitude = step.split()
            assert ours_name == snake(name)
            assert float(ours_probability) == probability
            assert int(ours_magnitude) == (magnitude or 0)


def test_a_space_is_timm_s(torchvision, monkeypatch):
    timm = pytest.importorskip("timm.data.auto_augment")
    space = RANDAUGMENT["timm"]
    names = timm.rand_augment_choices("", increasing=True)
    assert {snake(name) for name in names} == set(space.ranges)
    assert len(names) == len(space.ranges)
    for their_name in names:
        name, to_amount = snake(their_name), timm.LEVEL_TO_ARG[their_name]
        for step in np.linspace(0, 10, 21) if to_amount else []:
            for sign in (-1, 1):
                monkeypatch.setattr(timm, "_randomly_negate", lambda v, s=sign: v * s)
                (expected,) = to_amount(step, {})
                if name.startswith("translate"):
                    expected *= SIZE[1 if name.endswith("x") else 0]
                got = ours(space, name, step, sign)
                assert got == pytest.approx(expected, rel=1e-5, abs=1e-4), (name, step)
