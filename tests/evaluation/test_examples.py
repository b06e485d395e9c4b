"""Who is in a split where data.split_seed draws the examples anew."""

import pytest

from jaxcls import experiment
from jaxcls.errors import InputError
from jaxcls.evaluation import examples


def test_a_split_of_what_is_drawn_anew_is_a_role_or_refused(tiny):
    exp = experiment.build(tiny(**{"data.split_seed": 3}))
    as_text, as_role = (examples.of_run(exp, name) for name in ("train[90%:]", "eval"))
    assert (as_text.split, as_text.key) == (as_role.split, as_role.key)
    seen = [each.data.selection.used(each.split, each.key) for each in (as_text, as_role)]
    assert [*seen[0]] == [*seen[1]]
    for split in ("train[:100%]", "train[95%:]", "test+train[:10]"):
        with pytest.raises(
            InputError, match=r"data\.split_seed=3 draws anew .*--split=eval"
        ):
            examples.of_run(exp, split)
    assert examples.of_run(exp, "test[:9]").n == 9
    plain = experiment.build(tiny())
    assert examples.of_run(plain, "train[95%:]").key == "--split"


@pytest.mark.parametrize(
    ("split", "ours", "theirs", "named"),
    [
        ("eval", {"data.split_seed": 0}, {"data.split_seed": 1}, "data.split_seed=1 where"),
        ("eval", {}, {"data.split_seed": 0}, "data.split_seed=0 where the first"),
        # Fewer to draw from: other examples in data.eval, which has the same text.
        ("eval", {"data.split_seed": 0},
         {"data.split_seed": 0, "data.train": "train[:50%]"}, "data.train=train.:50%. wh"),
        ("eval", {}, {"data.train": "train[:50%]"}, ""),
        ("test", {"data.split_seed": 0}, {"data.split_seed": 1}, ""),
        ("test[:50%]", {"data.split_seed": 0}, {"data.split_seed": 1}, ""),
    ],
)  # fmt: skip
def test_two_runs_are_scored_on_the_same_examples(tiny, split, ours, theirs, named):
    first, other = (experiment.build(tiny(**values)) for values in (ours, theirs))
    given = examples.of_run(first, split)
    if not named:
        assert examples.same_for(first, given, other, "--against=b").n == given.n
        return
    with pytest.raises(InputError, match=f"other examples in data.eval: {named}"):
        examples.same_for(first, given, other, "--against=b")
