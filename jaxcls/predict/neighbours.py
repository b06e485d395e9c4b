"""Finds the nearest of many features by cosine similarity, exactly.

`sklearn.neighbors` is unsuitable: its similarities are matrix products, whose last bits
depend on the number of rows, so that equal images would come in any order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Nearest(NamedTuple):
    """The nearest rows to a query, nearest first: int64 [k], and float64 [k]."""

    rows: np.ndarray
    similarity: np.ndarray


class Index:
    """The features [n, D] float32 to search."""

    def __init__(self, features: np.ndarray) -> None:
        self._features, self._units = features, _units(features)

    def nearest(
        self,
        queries: np.ndarray,
        same: Sequence[Sequence[int]],
        top: int,
        leave_out: bool = False,
    ) -> list[Nearest]:
        """Returns the `top` nearest rows to each query [D] of `queries` [Q, D].

        same: for each query, the rows that are the query itself. They come first;
        `leave_out` removes them. Rows with equal similarity come in the order of their
        index. Similarities are sums in float64. The similarity of a row of zeros is 0.
        """
        about = _units(queries) @ self._units.T
        return [
            self._nearest(query, scores, list(rows), top, leave_out)
            for query, scores, rows in zip(queries, about, same, strict=True)
        ]

    def _nearest(
        self,
        query: np.ndarray,
        about: np.ndarray,
        same: list[int],
        top: int,
        leave_out: bool,
    ) -> Nearest:
        """Returns the nearest rows; about [n]: the similarities, rounded to float32."""
        # At least `top` of this many rows are not the query itself.
        wanted = min(top + len(same), len(about))
        # A bound of the error of a float32 product, for any order of its sums, by Cauchy
        # and Schwarz.
        error = 2 * (len(query) + 4) * np.finfo(np.float32).eps
        chosen = about >= np.partition(about, -wanted)[-wanted] - error
        chosen[same] = not leave_out
        rows = np.flatnonzero(chosen)
        similarity = _similarities(self._features[rows], query)
        is_other = ~np.isin(rows, same)
        order = np.lexsort((rows, -similarity, is_other))[:top]
        return Nearest(rows[order], similarity[order])


def _units(rows: np.ndarray) -> np.ndarray:
    """Returns rows [n, D] scaled to length 1; rows of zeros stay."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    lengths[lengths == 0] = 1
    return np.divide(rows, lengths[:, None], out=np.empty_like(rows), casting="same_kind")


def _similarities(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Returns the cosines [n] of rows [n, D] and a query [D], each row by itself."""
    wide, query = rows.astype(np.float64), query.astype(np.float64)
    # The sums of a matrix product would depend on the number of rows.
    products = (wide * query).sum(1)
    lengths = np.sqrt((wide * wide).sum(1)) * np.sqrt((query * query).sum())
    return np.divide(
        products, lengths, out=np.zeros_like(products), where=lengths > 0
    ).clip(-1, 1)
