"""The nearest by cosine: against scikit-learn's, ties, and a query's own rows."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from jaxcls.predict.neighbours import Index


def features(n, width=12, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def nearest(among, query, top, own=(), leave_out=False):
    """The nearest of one query."""
    (found,) = Index(among).nearest(query[None], [own], top, leave_out)
    return found


@pytest.mark.parametrize("top", [1, 10, 700])
def test_they_are_those_of_scikit_learn(top):
    among, queries = features(500) * 3, features(20, seed=1)
    known = NearestNeighbors(n_neighbors=min(top, 500), metric="cosine", algorithm="brute")
    distances, index = known.fit(among.astype(float)).kneighbors(queries.astype(float))
    found = Index(among).nearest(queries, [[]] * 20, top)
    np.testing.assert_array_equal([each.rows for each in found], index)
    np.testing.assert_allclose([each.similarity for each in found], 1 - distances)


def test_what_is_too_near_for_float32_is_still_in_order():
    rng = np.random.default_rng(0)
    query = features(1, 512)
    among = query * rng.uniform(0.5, 2, (300, 1)).astype(np.float32)
    among[:, :8] += rng.normal(size=(300, 8)).astype(np.float32) * 1e-3
    wide, one = among.astype(np.longdouble), query[0].astype(np.longdouble)
    exact = wide @ one / np.sqrt((wide**2).sum(1) * (one**2).sum())
    assert nearest(among, query[0], 20).rows.tolist() == np.argsort(-exact)[:20].tolist()


def test_equals_come_by_their_index_and_a_querys_own_rows_first_or_not_at_all():
    among = np.tile(features(4), (10, 1))
    found = nearest(among, among[1], 12)
    assert found.rows[:10].tolist() == list(range(1, 40, 4))
    assert len(set(found.similarity[:10].tolist())) == 1
    assert found.similarity[0] == pytest.approx(1, abs=1e-12)
    own = [26, 10]
    assert nearest(among, among[26], 5, own).rows.tolist() == [10, 26, 2, 6, 14]
    assert nearest(among, among[26], 5, own, True).rows.tolist() == [2, 6, 14, 18, 22]


def test_zeros_are_like_nothing():
    among = np.array([[0, 0], [-1, 0], [2, 0]], np.float32)
    assert nearest(among, among[0], 3).similarity.tolist() == [0, 0, 0]
    other = nearest(among, among[1], 3)
    assert (other.rows.tolist(), other.similarity.tolist()) == ([1, 0, 2], [1, 0, -1])
