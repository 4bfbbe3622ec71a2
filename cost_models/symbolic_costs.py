"""What ops cost at all sizes in closed form: scratch and storages above what was measured at a few, and arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import sympy

from graphopt.cost_models.at_sizes import CostsBySize
from graphopt.cost_models.fitted import Fitter
from graphopt.cost_models.polynomials import LEAST_SIZE, Form, Rows, value_at
from graphopt.cost_models.roofline import flops
from graphopt.cost_models.symbolic import Names, SymbolicBytes
from graphopt.graph.at_sizes import AtSizes, step_at
from graphopt.graph.step_graph import StepGraph, with_storage_bytes

#: Sizes at which ops are looked at, as multiples of those of the capture.
_MULTIPLES = (0.5, 1.0, 1.75)
#: So many sizes of each name: a line is told from a parabola.
_LOOKED_AT = 3
#: The highest power of one size in what arithmetic and scratch take.
_HIGHEST = 2

Sizes = Mapping[str, int]


@dataclass(frozen=True, eq=False)
class _Found:
    """The bytes of each value, and what each op takes besides, at some sizes."""

    values: tuple[int, ...]
    workspaces: tuple[int, ...]


def sizes_to_look_at(captured: Sizes, ranges: Mapping[str, tuple[int, int]]) -> list[dict[str, int]]:
    """Sizes around those of the capture, within the `ranges` that the graph serves."""
    choices = []
    for name, size in captured.items():
        low, high = ranges.get(name, (LEAST_SIZE, size))
        near = [*(int(size * multiple) for multiple in _MULTIPLES), *range(size + 1, size + _LOOKED_AT), size - 1]
        possible = [each for each in dict.fromkeys(near) if max(low, 2) <= each <= high]
        choices.append([(name, each) for each in sorted(possible[:_LOOKED_AT])])
    return [dict(chosen) for chosen in product(*choices)]


def with_scratch(
    known: SymbolicBytes, step: StepGraph, costs: CostsBySize, names: Names, at: Sequence[Sizes]
) -> SymbolicBytes:
    """The bytes of values and ops with all that ops were seen to take, at the sizes `at`: they are run there.

    What is no polynomial in sizes is taken for the least one that is below none of what was seen.
    """
    terms = _more_terms(known.terms)
    matrix = np.array([[value_at(term, sizes) for term in terms] for sizes in at], dtype=np.int64)
    fitter = Fitter(matrix)
    found = [_found(step, costs, names, sizes) for sizes in at]
    values = _widened(known.values, len(terms))
    seen = np.array([each.values for each in found], dtype=np.int64)
    values = values + _fitted(fitter, np.maximum(seen - matrix @ values.T, 0))
    workspaces = _fitted(fitter, np.array([each.workspaces for each in found], dtype=np.int64))
    return replace(known, terms=terms, values=values, workspaces=workspaces)


def flops_form(costs: CostsBySize, names: Names, terms: Sequence[sympy.Expr], at: Sequence[Sizes]) -> Form:
    """The floating-point operations of all ops, each run once."""
    terms = _more_terms(terms)
    fitter = Fitter(np.array([[value_at(term, sizes) for term in terms] for sizes in at], dtype=np.int64))
    counts = []
    for sizes in at:
        here = AtSizes(symbols_at(names, sizes))
        counts.append([int(flops(node, here)) for node in costs.examples])
    rows = _fitted(fitter, np.array(counts, dtype=np.int64))
    return Form.largest(terms, rows[list(costs.kinds)].sum(axis=0, keepdims=True))


def symbols_at(names: Names, sizes: Sizes) -> dict[sympy.Symbol, int]:
    """What a graph's symbols are at sizes by name."""
    return {symbol: sizes[name] for symbol, name in names.items()}


def _found(step: StepGraph, costs: CostsBySize, names: Names, sizes: Sizes) -> _Found:
    at = AtSizes(symbols_at(names, sizes))
    prices = costs.at(at)
    then = with_storage_bytes(step_at(step, at), [price.storage_bytes for price in prices])
    each = iter(prices)
    workspaces = tuple(next(each).workspace_bytes if op.node is not None else 0 for op in step.ops)
    return _Found(tuple(value.bytes for value in then.values), workspaces)


def _fitted(fitter: Fitter, numbers: Rows) -> Rows:
    """One row for each column of numbers; many are alike."""
    known: dict[tuple[int, ...], Rows] = {}
    rows = []
    for column in numbers.T.tolist():
        key = tuple(column)
        if key not in known:
            known[key] = fitter.fit(key)
        rows.append(known[key])
    return np.array(rows, dtype=np.int64).reshape(len(rows), fitter.monomials.shape[1])


def _more_terms(terms: Sequence[sympy.Expr]) -> tuple[sympy.Expr, ...]:
    """All products of sizes to some power each: what ops take besides may be made of others than values are."""
    symbols = sorted(set().union(*(term.free_symbols for term in terms)), key=str)
    powers = product(range(_HIGHEST + 1), repeat=len(symbols))
    found = [sympy.Mul(*(s**n for s, n in zip(symbols, each, strict=True))) for each in powers if sum(each) <= 3]
    return tuple(dict.fromkeys((*terms, *found)))


def _widened(rows: Rows, count: int) -> Rows:
    return np.pad(rows, ((0, 0), (0, count - rows.shape[1])))
