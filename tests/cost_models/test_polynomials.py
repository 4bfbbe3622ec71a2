"""Closed forms: what is left out of the largest of some polynomials is the largest nowhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import sympy

from graphopt.cost_models.fitted import Fitter
from graphopt.cost_models.polynomials import Family, Form, Monomials, size_symbol, value_at

BATCH, LENGTH = size_symbol("batch"), size_symbol("length")
TERMS = (sympy.Integer(1), BATCH, LENGTH, BATCH * LENGTH, BATCH * LENGTH**2)
SIZES = [{"batch": b, "length": n} for b, n in itertools.product((1, 2, 3, 7, 64), (1, 2, 5, 17, 300, 4096))]


def values(rows: np.ndarray, sizes: dict[str, int]) -> np.ndarray:
    return rows @ np.array([value_at(term, sizes) for term in TERMS])


@pytest.mark.parametrize("seed", range(10))
def test_the_largest_stays_what_it_was(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.integers(-20, 1000, (60, len(TERMS))) * [100_000, 1000, 100, 10, 1]
    form = Form.largest(TERMS, rows)
    assert len(form.rows) < len(rows) * 2 / 3
    ranges = {"batch": (2, 64), "length": (5, 300)}
    inside = form.within(ranges)
    assert len(inside.rows) <= len(form.rows)
    for sizes in SIZES:
        assert form.at(sizes) == values(rows, sizes).max()
        if all(low <= sizes[name] <= high for name, (low, high) in ranges.items()):
            assert inside.at(sizes) == form.at(sizes)


def test_sympy_has_the_same() -> None:
    form = Form.largest(TERMS, np.array([[7, 0, 0, 3, 0], [0, 0, 5, 0, 1]]))
    for sizes in SIZES:
        assert form.expression.subs(sizes_by_symbol(sizes)) == form.at(sizes)


def sizes_by_symbol(sizes: dict[str, int]) -> dict[sympy.Symbol, int]:
    return {size_symbol(name): size for name, size in sizes.items()}


def test_what_is_nowhere_the_largest_goes() -> None:
    rows = np.array([[0, 0, 0, 10, 0], [100, 0, 0, 0, 0], [50, 0, 0, 5, 0], [40, 0, 0, 4, 0], [-5, 5, 0, 10, 0]])
    # the mean of the first two is no less than the third; the last is the first, and 5 more for each above one
    assert Form.largest(TERMS, rows).rows.tolist() == [[-5, 5, 10], [100, 0, 0]]


def test_a_negative_coefficient_is_no_obstacle() -> None:
    # what is shifted by one is never above what is not
    rows = np.array([[0, -4, 0, 4, 0], [0, 0, 0, 4, 0]])
    assert Form.largest(TERMS, rows).polynomials == (4 * BATCH * LENGTH,)


def test_sums_and_families() -> None:
    one, other = Form.of(3 * BATCH + 7), Form.largest(TERMS, np.array([[100, 0, 0, 0, 0], [0, 0, 2, 0, 0]]))
    both = one + other
    for sizes, family in zip(SIZES, map(Family([one, other, both]).at, SIZES), strict=True):
        assert family == [one.at(sizes), other.at(sizes), one.at(sizes) + other.at(sizes)]
    far = {"batch": 2**31, "length": 2**31}
    assert Family([Form.of(2**40 * BATCH * LENGTH**2)]).at(far) == [2**133]


def test_what_is_rounded_stays_exact() -> None:
    half = (LENGTH + 1) // 2
    form = Form.of(4 * BATCH * half**2 + LENGTH)
    assert [form.at({"batch": 3, "length": n}) for n in (7, 8)] == [12 * 16 + 7, 12 * 16 + 8]
    assert form.within({"batch": (1, 8), "length": (1, 8)}).at({"batch": 3, "length": 7}) == 12 * 16 + 7


def test_monomials_are_read_once_each() -> None:
    monomials = Monomials()
    read = [monomials.read(e) for e in (4 * BATCH * (LENGTH - 1), BATCH * LENGTH + 3, sympy.Integer(5))]
    assert monomials.terms[0] == 1 and set(monomials.terms) == {1, BATCH, BATCH * LENGTH}
    found = Form(monomials.terms, monomials.rows(read))
    assert [p.subs({BATCH: 2, LENGTH: 5}) for p in found.polynomials] == [32, 13, 5]


def test_a_fit_meets_what_is_a_polynomial_and_is_above_what_is_none() -> None:
    matrix = np.array([[value_at(term, sizes) for term in TERMS] for sizes in SIZES])
    fitter = Fitter(matrix)
    exact = np.array([2048, 0, 0, 12, 4])
    assert fitter.fit((matrix @ exact).tolist()).tolist() == exact.tolist()
    assert not fitter.fit([0] * len(SIZES)).any()
    # a kernel that works in blocks of 32
    blocks = [64 * s["batch"] * -(-s["length"] // 32) * 32 for s in SIZES]
    fit = matrix @ fitter.fit(blocks)
    assert (fit >= blocks).all() and fit.sum() < 2 * sum(blocks)
