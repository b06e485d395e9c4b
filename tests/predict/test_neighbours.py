"""The nearest by cosine: against scikit-learn's, ties, a query's own rows, and blocks."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from jaxcls.predict import neighbours


def features(n, width=12, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


@pytest.mark.parametrize("rows", [7, 100, 1 << 16])
@pytest.mark.parametrize("top", [1, 10, 700])
def test_they_are_those_of_scikit_learn_whatever_the_blocks(monkeypatch, rows, top):
    monkeypatch.setattr(neighbours, "_ROWS", rows)
    among, queries = features(500) * 3, features(20, seed=1)
    known = NearestNeighbors(n_neighbors=min(top, 500), metric="cosine", algorithm="brute")
    distances, index = known.fit(among.astype(float)).kneighbors(queries.astype(float))
    found = neighbours.nearest(among, queries, top)
    np.testing.assert_array_equal([each.rows for each in found], index)
    np.testing.assert_allclose([each.similarity for each in found], 1 - distances)


def test_what_is_too_near_for_float32_is_still_in_order(monkeypatch):
    monkeypatch.setattr(neighbours, "_ROWS", 64)
    rng = np.random.default_rng(0)
    query = features(1, 512)
    among = query * rng.uniform(0.5, 2, (300, 1)).astype(np.float32)
    among[:, :8] += rng.normal(size=(300, 8)).astype(np.float32) * 1e-3
    wide, one = among.astype(np.longdouble), query[0].astype(np.longdouble)
    exact = wide @ one / np.sqrt((wide**2).sum(1) * (one**2).sum())
    (found,) = neighbours.nearest(among, query, 20)
    np.testing.assert_array_equal(found.rows, np.argsort(-exact)[:20])


@pytest.mark.parametrize("rows", [5, 1 << 16])
def test_equals_come_by_their_index(monkeypatch, rows):
    monkeypatch.setattr(neighbours, "_ROWS", rows)
    among = np.tile(features(4), (10, 1))
    for row in range(4):
        (found,) = neighbours.nearest(among, among[[row]], 12)
        assert found.rows[:10].tolist() == list(range(row, 40, 4))
        assert len(set(found.similarity[:10].tolist())) == 1
        assert found.similarity[0] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("rows", [5, 1 << 16])
def test_a_querys_own_rows_come_first_or_not_at_all(monkeypatch, rows):
    monkeypatch.setattr(neighbours, "_ROWS", rows)
    among = np.tile(features(4), (10, 1))
    own = [np.array([26, 10, 9]), np.array([], np.int64)]
    queries = among[[26, 1]]
    first, second = neighbours.nearest(among, queries, 5, own)
    assert (first.rows.tolist(), second.rows.tolist()) == (
        [26, 10, 9, 2, 6],
        [1, 5, 9, 13, 17],
    )
    first, second = neighbours.nearest(among, queries, 5, own, leave_out=True)
    assert (first.rows.tolist(), second.rows.tolist()) == (
        [2, 6, 14, 18, 22],
        [1, 5, 9, 13, 17],
    )


def test_zeros_are_like_nothing():
    among = np.array([[0, 0], [-1, 0], [2, 0]], np.float32)
    own, other = neighbours.nearest(among, among[:2], 3, [np.array([0]), np.array([1])])
    assert own.rows.tolist() == [0, 1, 2]
    assert own.similarity.tolist() == [0, 0, 0]
    assert other.rows.tolist() == [1, 0, 2]
    assert other.similarity.tolist() == [1, 0, -1]


def test_no_queries_have_no_neighbours():
    assert neighbours.nearest(features(5), np.empty((0, 12), np.float32), 3) == []
