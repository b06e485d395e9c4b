"""The cells and seeds of a study: what a command line asks for, and no other."""

import math
import time

import pytest

from jaxcls.errors import InputError
from jaxcls.studies import cells
from jaxcls.studies.cells import Cell


def made(grid=(), spaces=(), count=0, search_seed=0, vary="all"):
    return cells.make(grid, spaces, count, search_seed, vary)


def test_every_combination_is_a_cell_and_the_last_key_changes_first():
    assert made() == [Cell("base", {}, ())]
    found = made(["optim.lr=0.1,0.2", "--config.batch_size=8,16"])
    assert [tuple(cell.overrides.values()) for cell in found] == [
        ("0.1", "8"), ("0.1", "16"), ("0.2", "8"), ("0.2", "16"),
    ]  # fmt: skip
    assert found[1].name == "optim.lr=0.1,batch_size=16"
    assert list(found[0].overrides) == ["optim.lr", "batch_size"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("cnn(widths=(4, 8)),resnet18", ["cnn(widths=(4, 8))", "resnet18"]),
        ("flip | cutout(4), ", ["flip | cutout(4)", ""]),
        ("alexnet(weight_init='a,b'),x", ["alexnet(weight_init='a,b')", "x"]),
        ("", [""]),
        ("{'bias$': 2, 'x': [1, 2]}", ["{'bias$': 2, 'x': [1, 2]}"]),
    ],
)
def test_values_are_split_outside_of_brackets_and_quotes(text, values):
    assert cells.split(text) == values


def test_names_are_folders_in_every_script_and_no_two_are_the_same():
    long = [f"cnn(widths=({'4, ' * 60}{end}))" for end in (8, 16)]
    found = made([f"model.name={','.join([*long, 'cnn(dense=1)', 'cnn[dense=1]'])}"])
    names = [cell.name for cell in found]
    assert len(set(names)) == 4
    assert all(not set(name) & set("/ []()'\"") for name in names)
    assert max(map(len, names)) < 110
    names = [cell.name for cell in made(grid=["data.dir=ä,日本/x,a b"])]
    assert names == ["data.dir=ä", "data.dir=日本_x", "data.dir=a_b"]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("3", [0, 1, 2]),
        ("5-9", [5, 6, 7, 8, 9]),
        ("3,8", [3, 8]),
        (f"{2**32 - 1},", [2**32 - 1]),
    ],
)
def test_seeds_are_a_number_a_range_or_a_list(text, seeds):
    assert cells.seeds(text) == seeds


@pytest.mark.parametrize(
    "text",
    ["0", "", "-1", "9-5", "3,3", "a", "10001", f"0-{10**30}", f"{2**32},", "1-", "3,-8"],
)
def test_other_seeds_are_refused(text):
    with pytest.raises(InputError, match=r"--seeds=.* must be how many there are"):
        cells.seeds(text)


def test_a_seed_varies_all_or_the_streams_that_are_named_or_each_by_itself():
    (every,), (some,), each = made(), made(vary="order, init"), made(vary="each")
    assert every.seeds(4) == {"seed": 4}
    assert some.seeds(4) == {"seeds.init": 4, "seeds.order": 4}
    (part,) = made(vary="fraction,order")
    assert part.streams == ("order", "fraction")
    assert part.seeds(4) == {"seeds.order": 4, "data.fraction_seed": 4}
    assert cells.streams_of("split,init") == ("init", "split")
    config = {"data.fraction": 0.5, "data.train": "train[:90%]", "data.eval": "train[90%:]"}
    assert cells.sources_of(config)[-2:] == ("fraction", "split")
    mixed = {"data.train": "train[:90%]+test[:10%]"}
    for other in (
        {"data.eval": ""}, {"data.eval": "val[:5]"}, {"data.train": "train"}, mixed
    ):  # fmt: skip
        assert "split" not in cells.sources_of(config | other)
    each_source = cells.make([], [], 0, 0, "each", cells.sources_of(config))
    assert each_source[-1] == Cell("vary=split", {}, ("split",))
    assert each_source[-1].seeds(4) == {"data.split_seed": 4}
    # A seed that varies all leaves the choice of a fraction as it is.
    assert [cell.streams for cell in each] == [
        (), ("init",), ("order",), ("augment",), ("dropout",),
    ]  # fmt: skip
    assert [cell.name for cell in each][:2] == ["base", "vary=init"]


def test_draws_are_within_their_space_and_more_of_them_begin_alike():
    spaces = ["optim.lr=log(1e-4..0.1)", "loss.smoothing=0..0.5", "batch_size=log(8..512)"]
    many, few = made(spaces=spaces, count=400), made(spaces=spaces, count=5)
    assert few == many[:5]
    assert made(spaces=spaces, count=5, search_seed=1) != few
    lr, smoothing, size = (
        [float(cell.overrides[key]) for cell in many]
        for key in ("optim.lr", "loss.smoothing", "batch_size")
    )
    assert 1e-4 <= min(lr) < 2e-4
    assert 0.05 < max(lr) <= 0.1
    assert min(size) == 8
    assert max(size) <= 512
    # Half of a log space lies below its geometric mean, half of a linear one below half.
    for values, half in ((lr, math.sqrt(1e-5)), (smoothing, 0.25), (size, 64)):
        assert abs(sum(value < half for value in values) - 200) < 40
    even = made(spaces=["batch_size=1..4", "optim.lr=0..1"], count=4000)
    drawn = [cell.overrides["batch_size"] for cell in even]
    assert set(drawn) == {"1", "2", "3", "4"}
    assert all(abs(drawn.count(size) - 1000) < 110 for size in "1234")  # Four deviations.


def test_draws_from_lists_are_of_the_lists_and_no_two_are_the_same():
    lists = ["augment=flip,randaugment(2, 10)", "batch_size=8,16,32"]
    found = made(spaces=lists, count=6)
    assert len({tuple(cell.overrides.values()) for cell in found}) == 6
    assert {cell.overrides["augment"] for cell in found} == {"flip", "randaugment(2, 10)"}
    assert made(spaces=lists, count=2) == found[:2]
    with pytest.raises(InputError, match=r"--cells=7 are more than .* made 6;"):
        made(spaces=lists, count=7)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"grid": ["optim.lr"]}, r"--grid 'optim\.lr': it has no '='; try"),
        ({"grid": ["optim.rl=1"]}, r"unknown config key 'optim\.rl' \(did you mean"),
        ({"grid": ["optim.lr=1", "optim.lr=2"]}, r"optim\.lr is given twice"),
        ({"grid": ["seed=1,2"]}, "seeds are what --seeds and --vary vary"),
        ({"grid": ["seeds.init=1"]}, "seeds are what --seeds and --vary vary"),
        ({"grid": ["optim.lr=1"], "vary": "each"}, "each make cells; give one of them"),
        ({"vary": "fractions"}, r"\(did you mean 'fraction'\?\) must be all, each, or"),
        ({"vary": "ordr"}, r"--vary=ordr \(did you mean 'order'\?\)"),
        ({"spaces": ["optim.lr=1..0"], "count": 3}, "to a larger one"),
        ({"spaces": ["optim.lr=log(0..1)"], "count": 3}, "above 0 in log"),
        ({"spaces": ["batch_size=8.5..64"], "count": 3}, "both whole"),
        ({"spaces": ["optim.lr=--..1"], "count": 3}, "to a larger one"),
        ({"spaces": ["optim.lr=0..1"], "grid": ["x=8"], "count": 3}, "give one of them"),
        ({"spaces": ["optim.lr=0..1"], "count": 10**6}, "must be at most 10,000"),
    ],
)
def test_what_makes_no_sense_is_refused(asked, message):
    with pytest.raises(InputError, match=message):
        made(**asked)


def test_a_megabyte_in_an_open_bracket_is_split_at_once():
    began = time.process_time()
    assert len(cells.split("randaugment(2," * 70_000)) == 1
    assert time.process_time() - began < 2
