"""Bytes of a graph whose sizes are symbols, in closed form: of its values, and alive at each step of a schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy
import torch
from torch.utils._sympy.functions import Max

from graphopt.cost_models.polynomials import Form, Monomials, Rows, size_symbol
from graphopt.device.allocator import ROUND_BYTES
from graphopt.device.storages import known, planned_bytes, same_device
from graphopt.graph.nodes import copied_elements, copied_view
from graphopt.graph.step_graph import StepGraph, ValueInfo
from graphopt.problem.problem import Problem
from graphopt.problem.schedule import Schedule, lifetimes

#: The names of sizes by the symbols that stand for them.
Names = Mapping[sympy.Symbol, str]


@dataclass(frozen=True, eq=False)
class SymbolicBytes:
    """What values take and ops need besides, as polynomials: a row of coefficients of `terms` for each.

    What schedules are made of is in the `problem`, whose numbers are not looked at.
    """

    problem: Problem
    terms: tuple[sympy.Expr, ...]
    values: Rows
    workspaces: Rows

    def live(self, schedule: Schedule) -> Rows:
        """Bytes alive at each step, workspace included, as `simulate` has them at given sizes."""
        change = np.zeros((len(schedule) + 1, len(self.terms)), dtype=np.int64)
        spans = lifetimes(self.problem, schedule)
        if spans:
            value, first, last = np.array(spans, dtype=np.int64).T
            np.add.at(change, first, self.values[value])
            np.add.at(change, last + 1, -self.values[value])
        return np.cumsum(change, axis=0)[:-1] + self.workspaces[list(schedule)]

    def peak(self, schedule: Schedule, beside: Rows | None = None) -> Form:
        """The highest number of bytes alive; `beside` are bytes at each step that are the same at all sizes."""
        live = self.live(schedule)
        if beside is not None:
            live[:, 0] += beside
        return Form.largest(self.terms, live)

    def total(self, chosen: Callable[[int], bool]) -> Form:
        """What the chosen values take together."""
        rows = self.values[[number for number in range(len(self.values)) if chosen(number)]]
        return Form.largest(self.terms, rows.sum(axis=0, keepdims=True))


def symbolic_bytes(step: StepGraph, problem: Problem, names: Names) -> SymbolicBytes:
    """The bytes of a step graph's values at all sizes, without what ops take besides."""
    monomials = Monomials()
    read = [monomials.read(bytes_of_value(value, step.device, names)) for value in step.values]
    values = monomials.rows(read)
    return SymbolicBytes(problem, monomials.terms, values, np.zeros((len(problem.ops), values.shape[1]), np.int64))


def bytes_of_value(value: ValueInfo, device: torch.device, names: Names) -> sympy.Expr:
    """The bytes of one value; those of a constant, as they were measured."""
    if value.traced is None or value.kind == "resident":
        return sympy.Integer(value.bytes)
    own = bytes_of_tensor(value.traced, device, names)
    view = copied_view(value.node)
    if view is None or not same_device(view, device):
        return own
    return _larger(own, rounded(expression(copied_elements(view), names) * view.itemsize, device))


def bytes_of_tensor(tensor: torch.Tensor, device: torch.device, names: Names) -> sympy.Expr:
    """The bytes of a traced tensor's storage; 0 on another device.

    On CUDA the allocator's rounding is counted at its most.
    """
    if not same_device(tensor, device):
        return sympy.Integer(0)
    return rounded(expression(tensor.untyped_storage().nbytes(), names), device, tensor)


def rounded(requested: sympy.Expr, device: torch.device, tensor: torch.Tensor | None = None) -> sympy.Expr:
    """Requested bytes as the device's allocator counts them, at the most."""
    if device.type != "cuda":
        return requested
    if requested.is_Integer:
        return sympy.Integer(planned_bytes(int(requested), device))
    coefficients = sympy.expand(requested).as_coefficients_dict().values()
    whole = all(coefficient % ROUND_BYTES == 0 for coefficient in coefficients)
    now = known(tensor.untyped_storage().nbytes()) if tensor is not None else 0
    beyond = planned_bytes(now, device) - -(-now // ROUND_BYTES) * ROUND_BYTES
    return requested + beyond + (0 if whole else ROUND_BYTES - 1)


def expression(size: Any, names: Names) -> sympy.Expr:
    """A size in the symbols that stand for names."""
    if not isinstance(size, torch.SymInt):
        return sympy.Integer(int(size))
    found: sympy.Expr = size.node.expr
    found = found.xreplace({s: size_symbol(names[s]) for s in found.free_symbols})
    return found.replace(Max, _largest_argument)


def _largest_argument(*arguments: sympy.Expr) -> sympy.Expr:
    """The one that is no less than the others where sizes are 2 or more: strides come as Max(1, length - 1)."""
    for one in arguments:
        if all(_is_nowhere_less(one, other) for other in arguments):
            return one
    return Max(*arguments)


def _is_nowhere_less(one: sympy.Expr, other: sympy.Expr) -> bool:
    above = (one - other).xreplace({symbol: symbol + 2 for symbol in (one - other).free_symbols})
    return all(coefficient >= 0 for coefficient in sympy.expand(above).as_coefficients_dict().values())


def _larger(one: sympy.Expr, other: sympy.Expr) -> sympy.Expr:
    """The one that is no less at any sizes, or else what is both at the most."""
    terms = sympy.expand(one - other).as_coefficients_dict().values()
    if all(coefficient >= 0 for coefficient in terms):
        return one
    return other if all(coefficient <= 0 for coefficient in terms) else sympy.Max(one, other)
