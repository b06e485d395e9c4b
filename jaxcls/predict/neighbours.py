"""Finds the nearest of many features by cosine similarity: exactly, block by block.

`sklearn.neighbors` is unsuitable: it copies all features into memory. Its similarities are
matrix products, whose last bits change with the block size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Limits of a block, in numbers and in rows: 16 MiB a copy.
_NUMBERS, _ROWS = 1 << 22, 1 << 16


class Nearest(NamedTuple):
    """The nearest rows to a query, nearest first: int64 [k], and float64 [k]."""

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
    """Returns, for each query [D] of `queries` [Q, D], the `top` nearest `features`.

    features: [N, D] float32. It may be memory-mapped: little more than a block is in
    memory. own: for each query, the rows that are the query itself. They come first, in the
    given order; `leave_out` removes them. Rows with equal similarity come in the order of
    their index. Similarities are sums in float64, the same for all block sizes. The
    similarity of a row of zeros is 0.
    """
    own = [np.empty(0, np.int64)] * len(queries) if own is None else own
    searches = [
        _Search(query, top, rows, leave_out)
        for query, rows in zip(queries, own, strict=True)
    ]
    width = features.shape[1]
    rows = max(1, min(_ROWS, _NUMBERS // max(1, width)))
    # A bound of the error of a float32 product, for any order of its sums, by Cauchy and
    # Schwarz.
    error = 2 * (width + 4) * float(np.finfo(np.float32).eps)
    units = _units(queries)
    for first in range(0, len(features), rows):
        block = np.asarray(features[first : first + rows])
        about = units @ _units(block).T
        for search, scores in zip(searches, about, strict=True):
            search.look(block, first, scores, error)
    return [search.found for search in searches]


class _Search:
    """The search for one query: keeps the nearest of all rows seen."""

    def __init__(
        self, query: np.ndarray, top: int, own: np.ndarray, leave_out: bool
    ) -> None:
        self._query, self._top = query.astype(np.float64), top
        self._own, self._leave_out = own, leave_out
        self.found = Nearest(np.empty(0, np.int64), np.empty(0))

    def look(self, block: np.ndarray, first: int, scores: np.ndarray, error: float) -> None:
        """Searches a block whose first row is `first`; scores are at most `error` off."""
        chosen = scores >= self._least(scores) - error
        here = self._own[(self._own >= first) & (self._own < first + len(block))] - first
        chosen[here] = not self._leave_out
        index = np.flatnonzero(chosen)
        self._add(index + first, _similarities(block[index], self._query))

    def _least(self, scores: np.ndarray) -> float:
        """Returns the similarity that a row of this block needs, up to the error."""
        # At least `top` of this many rows are not the query itself.
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
    """Returns rows [n, D] scaled to length 1; rows of zeros stay."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    lengths[lengths == 0] = 1
    return (rows / lengths[:, None]).astype(np.float32)


def _similarities(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Returns the cosines [n] of rows [n, D] and a query [D], each row by itself."""
    wide = rows.astype(np.float64)
    # The sums of a matrix product would depend on the number of rows.
    products = (wide * query).sum(1)
    lengths = np.sqrt((wide * wide).sum(1)) * np.sqrt((query * query).sum())
    return np.divide(
        products, lengths, out=np.zeros_like(products), where=lengths > 0
    ).clip(-1, 1)
