"""Polynomials through numbers that were found at a few sizes: through all of them, or above them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import numpy.typing as npt

from graphopt.cost_models.polynomials import Rows

#: A polynomial that meets all numbers has no more terms: more would meet any.
_MOST_TERMS = 3


@dataclass(frozen=True, eq=False)
class Fitter:
    """What monomials are at the sizes where numbers were found: one row for each of these sizes."""

    monomials: Rows

    def fit(self, numbers: Sequence[int]) -> Rows:
        """The coefficients of the polynomial with the fewest terms that meets all numbers.

        Where none does, of one that is below none of them, and above them by least.
        """
        found = np.array(numbers, dtype=np.int64)
        if not found.any():
            return np.zeros(self.monomials.shape[1], dtype=np.int64)
        best, least = None, np.inf
        for columns, inverse in self._inverses:
            coefficients = inverse @ found
            exact = np.rint(coefficients).astype(np.int64)
            if (self.monomials[:, columns] @ exact == found).all():
                return self._row(columns, exact)
            above = _raised(self.monomials[:, columns], np.maximum(coefficients, 0.0), found)
            if above is not None and (excess := _excess(self.monomials[:, columns] @ above, found)) < least:
                best, least = self._row(columns, above), excess
        assert best is not None, "the first monomial is 1, which is above any number"
        return best

    @cached_property
    def _inverses(self) -> list[tuple[list[int], npt.NDArray[np.float64]]]:
        count = self.monomials.shape[1]
        most = min(_MOST_TERMS, len(self.monomials) - 1, count)
        chosen = [list(columns) for size in range(1, most + 1) for columns in combinations(range(count), size)]
        return [(columns, _inverse(self.monomials[:, columns])) for columns in chosen or [[0]]]

    def _row(self, columns: list[int], coefficients: Rows) -> Rows:
        row = np.zeros(self.monomials.shape[1], dtype=np.int64)
        row[columns] = coefficients
        return row


def _inverse(matrix: Rows) -> npt.NDArray[np.float64]:
    """The pseudo-inverse, of columns scaled to 1: monomials differ by orders of magnitude."""
    scale = np.maximum(matrix.max(axis=0), 1).astype(np.float64)
    inverse: npt.NDArray[np.float64] = np.linalg.pinv(matrix / scale) / scale[:, None]
    return inverse


def _raised(matrix: Rows, coefficients: npt.NDArray[np.float64], numbers: Rows) -> Rows | None:
    """A multiple that is below none of the numbers; None where there is none."""
    values = matrix @ coefficients
    if not (values[numbers > 0] > 0).all():
        return None
    factor = (numbers[numbers > 0] / values[numbers > 0]).max()
    raised: Rows = np.ceil(coefficients * factor * (1 - 1e-12)).astype(np.int64)
    return raised if (matrix @ raised >= numbers).all() else raised + (raised > 0)


def _excess(values: Rows, numbers: Rows) -> float:
    """By how much values are above numbers, as a share of the largest."""
    return float((values - numbers).sum() / max(numbers.sum(), 1))
