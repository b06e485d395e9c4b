"""The nearest of many features by the cosine of their angle: exact, a block at a time.

Not `sklearn.neighbors`: it holds a copy of all features in memory, and its similarities,
products of matrices, change in the last bits with the size of a block.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# The most numbers, and rows, of the features that are worked on at once: 16 MiB a copy.
_NUMBERS, _ROWS = 1 << 22, 1 << 16


class Nearest(NamedTuple):
    """What is nearest to a query, the nearest first: int64 [k], and float64 [k]."""

    rows: np.ndarray
    similarity: np.ndarray


def nearest(
    features: np.ndarray,
    queries: np.ndarray,
    top: int,
    own: Sequence[np.ndarray] | None = None,
    *,
    leave_out: bool = False,
) -> list[Nearest]:
    """Of each query [D] of `queries` [Q, D] the `top` nearest of `features` [N, D] float32.

    Rows that are equally near come by their index. own: for each query the rows that are
    the query itself, which come first as given, or not at all if they are to `leave_out`.
    features may be mapped from a file: little more than a block of them is in memory.
    Similarities are sums in float64, the same whatever the blocks; a row of zeros has
    none to anything, 0.
    """
    own = [np.empty(0, np.int64)] * len(queries) if own is None else own
    searches = [
        _Search(query, top, rows, leave_out)
        for query, rows in zip(queries, own, strict=True)
    ]
    width = features.shape[1]
    rows = max(1, min(_ROWS, _NUMBERS // max(1, width)))
    # Of a product in float32, whatever the order of its sums, by Cauchy and Schwarz.
    error = 2 * (width + 4) * float(np.finfo(np.float32).eps)
    units = _units(queries)
    for first in range(0, len(features), rows):
        block = np.asarray(features[first : first + rows])
        about = units @ _units(block).T
        for search, scores in zip(searches, about, strict=True):
            search.look(block, first, scores, error)
    return [search.found for search in searches]


class _Search:
    """What is nearest to one query of the rows that it was shown."""

    def __init__(
        self, query: np.ndarray, top: int, own: np.ndarray, leave_out: bool
    ) -> None:
        self._query, self._top = query.astype(np.float64), top
        self._own, self._leave_out = own, leave_out
        self.found = Nearest(np.empty(0, np.int64), np.empty(0))

    def look(self, block: np.ndarray, first: int, scores: np.ndarray, error: float) -> None:
        """Rows `first`... of the features; scores: similarities, at most `error` off."""
        chosen = scores >= self._least(scores) - error
        here = self._own[(self._own >= first) & (self._own < first + len(block))] - first
        chosen[here] = not self._leave_out
        index = np.flatnonzero(chosen)
        self._add(index + first, _similarities(block[index], self._query))

    def _least(self, scores: np.ndarray) -> float:
        """What the last of the nearest has, of those found and those of this block."""
        # As many are sure to be no rows of the query's own.
        wanted = self._top + len(self._own)
        least = -np.inf
        if len(scores) > wanted:
            least = float(np.partition(scores, len(scores) - wanted)[-wanted])
        if len(self.found.rows) == self._top:
            least = max(least, float(self.found.similarity.min()))
        return least

    def _add(self, index: np.ndarray, similarity: np.ndarray) -> None:
        index = np.concatenate([self.found.rows, index])
        similarity = np.concatenate([self.found.similarity, similarity])
        turn = np.full(len(index), len(self._own))
        for number, row in enumerate(self._own.tolist()):
            turn[index == row] = number
        order = np.lexsort((index, -similarity, turn))[: self._top]
        self.found = Nearest(index[order], similarity[order])


def _units(rows: np.ndarray) -> np.ndarray:
    """rows [n, D] of length 1; those of zeros stay."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    lengths[lengths == 0] = 1
    return (rows / lengths[:, None]).astype(np.float32)


def _similarities(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Cosines [n] of rows [n, D] and a query [D], each by itself."""
    wide = rows.astype(np.float64)
    # Not a product of matrices, whose sums depend on how many rows there are.
    products = (wide * query).sum(1)
    lengths = np.sqrt((wide * wide).sum(1)) * np.sqrt((query * query).sum())
    return np.divide(
        products, lengths, out=np.zeros_like(products), where=lengths > 0
    ).clip(-1, 1)
