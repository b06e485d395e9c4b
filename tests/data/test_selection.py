"""Which examples are used, by hand."""

import itertools

import numpy as np
import pytest

from jaxcls.data import selection
from jaxcls.errors import InputError


def test_classes_are_chosen_by_name_or_number():
    names = ("cat", "dog", "owl", "7")
    assert selection.select_classes("owl, cat", names, 4) == [0, 2]
    assert selection.select_classes("1-2,0", names, 4) == [0, 1, 2]
    assert selection.select_classes("7", names, 4) == [3]  # A name before a number.
    numbers = ("1", "2", "3", "10")  # Ranges are names too where all names are numbers.
    assert selection.select_classes("1-3", numbers, 4) == [0, 1, 2]
    assert selection.select_classes("2,3,10", numbers, 4) == [1, 2, 3]
    with pytest.raises(InputError, match="0-2 is not within 1-10"):
        selection.select_classes("0-2", numbers, 4)
    assert selection.select_classes("1-3", (), 5) == [1, 2, 3]
    with pytest.raises(InputError, match=r"'dgo' is not a class .did you mean 'dog'"):
        selection.select_classes("dgo", names, 4)
    with pytest.raises(InputError, match=r"2-4 is not within 0-3"):
        selection.select_classes("2-4", names, 4)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.99])
def test_a_fraction_is_stratified(fraction):
    labels = np.random.default_rng(0).integers(0, 7, 3000)
    taken = selection.stratified(labels, fraction, 5)
    assert len(set(taken.tolist())) == len(taken)
    whole, part = np.bincount(labels), np.bincount(labels[taken], minlength=7)
    assert (np.abs(part - whole * fraction) <= 0.5).all()


def test_fractions_are_nested_and_depend_on_their_seed():
    labels = np.random.default_rng(1).integers(0, 5, 1000)
    sets = [set(selection.stratified(labels, f, 3).tolist()) for f in (0.02, 0.1, 0.4, 1.0)]
    assert all(a < b for a, b in itertools.pairwise(sets))
    assert sets[-1] == set(range(1000))
    assert set(selection.stratified(labels, 0.1, 4).tolist()) != sets[1]


def test_a_small_fraction_keeps_one_of_each_class():
    labels = np.repeat([0, 2, 4], [500, 3, 1])  # Two classes have no example at all.
    taken = labels[selection.stratified(labels, 0.004, 0)]
    assert np.bincount(taken, minlength=5).tolist() == [2, 0, 1, 0, 1]
