"""Polynomials in the sizes of a graph's inputs, and the largest of several: bytes in closed form.

A polynomial is a row of coefficients, one for each of its monomials, so that sums over thousands of values are sums of
rows. What a graph rounds sizes to (half of an image's side) is no polynomial: it stands in a monomial as a factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from math import comb, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import sympy

from graphopt.graph.at_sizes import evaluated

Rows = npt.NDArray[np.int64]

#: Sizes are no less.
LEAST_SIZE = 1
#: Into so many parts a range of a size is cut to find out which polynomials are the largest somewhere in it.
_PARTS = 4

#: Mixtures are looked for among so many polynomials at the most.
_MOST_MIXED = 32

#: Sums below this are computed with machine integers.
_EXACT = 2**63

#: The least and the largest of each size, by name.
Ranges = Mapping[str, tuple[int, int]]


def size_symbol(name: str) -> sympy.Symbol:
    """The symbol that stands for a size in all formulas."""
    return sympy.Symbol(name, integer=True, positive=True)


def value_at(expression: sympy.Expr, sizes: Mapping[str, int]) -> int:
    """What an expression in sizes is, a whole number."""
    symbols = {symbol: sizes[symbol.name] for symbol in expression.free_symbols}
    return int(evaluated(expression, symbols))


class Monomials:
    """The monomials that were met, the first of which is 1; more may come while expressions are read."""

    def __init__(self) -> None:
        self._numbers: dict[sympy.Expr, int] = {sympy.Integer(1): 0}
        self._read: dict[sympy.Expr, dict[int, int]] = {}

    @property
    def terms(self) -> tuple[sympy.Expr, ...]:
        """The monomials, in the order of the columns of rows."""
        return tuple(self._numbers)

    def read(self, expression: sympy.Expr) -> dict[int, int]:
        """The coefficients of an expression, by the number of the monomial."""
        found = self._read.get(expression)
        if found is None:
            terms = sympy.expand(expression).as_coefficients_dict()
            if not all(coefficient.is_Integer for coefficient in terms.values()):
                terms = {expression: sympy.Integer(1)}
            found = {self.number(term): int(coefficient) for term, coefficient in terms.items()}
            self._read[expression] = found
        return found

    def number(self, term: sympy.Expr) -> int:
        """The column of a monomial."""
        return self._numbers.setdefault(term, len(self._numbers))

    def rows(self, polynomials: Sequence[Mapping[int, int]]) -> Rows:
        """One row for each of the polynomials that were read."""
        rows = np.zeros((len(polynomials), len(self._numbers)), dtype=np.int64)
        for row, coefficients in zip(rows, polynomials, strict=True):
            for column, coefficient in coefficients.items():
                row[column] = coefficient
        return rows


@dataclass(frozen=True, eq=False)
class Form:
    """The largest of some polynomials, at any sizes: `rows` has a coefficient for each of `terms`."""

    terms: tuple[sympy.Expr, ...]
    rows: Rows

    @staticmethod
    def largest(terms: tuple[sympy.Expr, ...], rows: Rows) -> Form:
        """The largest of these polynomials, without those that are it nowhere."""
        rows = np.unique(rows, axis=0)
        return _form(terms, rows[_largest_somewhere(rows @ _above_least(terms))])

    @staticmethod
    def of(expression: sympy.Expr | int) -> Form:
        """One polynomial."""
        monomials = Monomials()
        read = monomials.read(sympy.sympify(expression))
        return Form.largest(monomials.terms, monomials.rows([read]))

    def __add__(self, other: Form) -> Form:
        """The sum of two; each polynomial of the one with each of the other."""
        terms = tuple(dict.fromkeys((*self.terms, *other.terms)))
        ours, theirs = _in_columns(self, terms), _in_columns(other, terms)
        sums = ours[:, None, :] + theirs[None, :, :]
        return Form.largest(terms, sums.reshape(-1, len(terms)))

    def at(self, sizes: Mapping[str, int]) -> int:
        """What it is at these sizes, by name."""
        values = [value_at(term, sizes) for term in self.terms]
        found: list[int] = [sum(c * v for c, v in zip(row, values, strict=True)) for row in self.rows.tolist()]
        return max(found)

    def within(self, ranges: Ranges) -> Form:
        """The same in these ranges of sizes, without the polynomials that are the largest nowhere in them."""
        kept: set[int] = set()
        for box in _boxes(ranges):
            bounds = _bounds(self.terms, box)
            if bounds is None:
                return self
            kept.update(_largest_somewhere(self.rows.astype(np.float64) @ bounds))
        return _form(self.terms, self.rows[sorted(kept)])

    @cached_property
    def polynomials(self) -> tuple[sympy.Expr, ...]:
        """The polynomials of which it is the largest."""
        found = [sympy.Add(*(c * t for c, t in zip(row, self.terms, strict=True))) for row in self.rows.tolist()]
        return tuple(found) or (sympy.Integer(0),)

    @property
    def expression(self) -> sympy.Expr:
        """The same for sympy, unevaluated: a polynomial, or Max of some."""
        polynomials = self.polynomials
        return polynomials[0] if len(polynomials) == 1 else sympy.Max(*polynomials, evaluate=False)


class Family:
    """Several forms, that are asked for at the same sizes."""

    def __init__(self, forms: Sequence[Form]) -> None:
        self.forms = tuple(forms)
        self._terms = tuple(dict.fromkeys(term for form in forms for term in form.terms))
        rows = [_in_columns(form, self._terms) for form in forms]
        self._starts = np.cumsum([0, *(len(each) for each in rows)])[:-1]
        self._rows = np.concatenate(rows)
        self._largest = int(np.abs(self._rows).max(initial=0))

    def at(self, sizes: Mapping[str, int]) -> list[int]:
        """What each form is at these sizes."""
        values = [value_at(term, sizes) for term in self._terms]
        # Python's integers do not overflow where a search goes far, and take a hundred times as long
        exact = self._largest * sum(map(abs, values)) < _EXACT
        rows = self._rows if exact else self._rows.astype(object)
        sums = rows @ np.array(values, dtype=np.int64 if exact else object)
        found: list[int] = np.maximum.reduceat(sums, self._starts).tolist()
        return found


def _form(terms: Sequence[sympy.Expr], rows: Rows) -> Form:
    used = np.flatnonzero(rows.any(axis=0))
    return Form(tuple(terms[int(column)] for column in used), rows[:, used])


def _largest_somewhere(bounds: npt.NDArray[Any]) -> list[int]:
    """Those rows that no other one, and no mixture of two others, is nowhere less than.

    Rows of `bounds` are such that where none of one is less than that of another, no value is. The larger of two is no
    less than any mixture of them, so that the largest of all stays what it was.
    """
    kept: list[int] = []
    left = np.argsort(-(bounds / np.maximum(np.abs(bounds).max(axis=0), 1)).sum(axis=1), kind="stable")
    while len(left):  # the first of those that are left is nowhere less than most of them
        kept.append(int(left[0]))
        left = left[1:][(bounds[left[1:]] > bounds[left[0]]).any(axis=1)]
    unmixed = list(kept)
    for row in reversed(kept if len(kept) <= _MOST_MIXED else []):
        others = [each for each in unmixed if each != row]
        if any(_mixes(bounds[one], bounds[other], bounds[row]) for one, other in _pairs(others)):
            unmixed = others
    return unmixed


def _pairs(numbers: Sequence[int]) -> Iterable[tuple[int, int]]:
    # a mixture's shares are of both, so that the order of two does not matter
    return ((one, other) for i, one in enumerate(numbers) for other in numbers[i + 1 :])


def _mixes(one: npt.NDArray[Any], other: npt.NDArray[Any], row: npt.NDArray[Any]) -> bool:
    """Whether share * one + (1 - share) * other >= row, coefficient by coefficient, for one share from 0 to 1."""
    low, high = 0.0, 1.0
    for a, b, c in zip(one.tolist(), other.tolist(), row.tolist(), strict=True):
        if a == b:
            if b < c:
                return False
        elif a > b:
            low = max(low, (c - b) / (a - b))
        else:
            high = min(high, (b - c) / (b - a))
    # shares are rounded, but what that lets pass is less than the byte by which whole numbers differ
    return low <= high


def _in_columns(form: Form, terms: Sequence[sympy.Expr]) -> Rows:
    rows = np.zeros((len(form.rows), len(terms)), dtype=np.int64)
    for column, term in enumerate(form.terms):
        rows[:, terms.index(term)] = form.rows[:, column]
    return rows


def _above_least(terms: Sequence[sympy.Expr]) -> Rows:
    """Rows of coefficients, times this, are coefficients in what each size is above the least one."""
    columns: dict[tuple[tuple[sympy.Expr, int], ...], int] = {}
    entries: list[tuple[int, int, int]] = []
    for number, term in enumerate(terms):
        factors = [(base, int(power)) for base, power in term.as_powers_dict().items() if base != 1]
        sizes = [(base, power) for base, power in factors if base.is_Symbol]
        rest = [(base, power) for base, power in factors if not base.is_Symbol]
        for powers in product(*(range(power + 1) for _, power in sizes)):
            left = [(base, power) for (base, _), power in zip(sizes, powers, strict=True) if power]
            key = tuple(sorted((*left, *rest), key=str))
            share = prod(comb(n, k) * LEAST_SIZE ** (n - k) for (_, n), k in zip(sizes, powers, strict=True))
            entries.append((number, columns.setdefault(key, len(columns)), share))
    found = np.zeros((len(terms), len(columns)), dtype=np.int64)
    for number, column, share in entries:
        found[number, column] += share
    return found


def _boxes(ranges: Ranges) -> Iterable[Ranges]:
    """Ranges cut into parts, evenly by their ratios: together they hold all of what `ranges` hold."""
    parts = []
    for name, (low, high) in ranges.items():
        edges = np.geomspace(max(low, 1), max(high, low, 1), _PARTS + 1).tolist()
        edges[0], edges[-1] = low, high
        parts.append([(name, each) for each in pairwise(edges)])
    return map(dict, product(*parts))


def _bounds(terms: Sequence[sympy.Expr], box: Ranges) -> npt.NDArray[np.float64] | None:
    """Rows of coefficients, times this, are coefficients of Bernstein's polynomials in a box of sizes.

    Those are nowhere negative in it. None where a term is made of something else than sizes.
    """
    powers = [{base: int(power) for base, power in term.as_powers_dict().items() if base != 1} for term in terms]
    symbols = sorted(set().union(*powers), key=str)
    if not all(symbol.is_Symbol and symbol.name in box for symbol in symbols):
        return None
    found = np.ones((len(terms), 1))
    for symbol in symbols:
        degree = max(power.get(symbol, 0) for power in powers)
        each = np.array([_bernstein(power.get(symbol, 0), degree, *box[symbol.name]) for power in powers])
        found = (found[:, :, None] * each[:, None, :]).reshape(len(terms), -1)
    return found


def _bernstein(power: int, degree: int, low: float, high: float) -> list[float]:
    """The coefficients of size**power, low <= size <= high, in Bernstein's polynomials of that degree.

    By polar forms: the j-th is the mean, over all ways to choose `power` of `degree` numbers, j of which are `high` and
    the others `low`, of their products.
    """
    ways = comb(degree, power)
    return [
        sum(comb(j, k) * comb(degree - j, power - k) * high**k * low ** (power - k) for k in range(power + 1)) / ways
        for j in range(degree + 1)
    ]
