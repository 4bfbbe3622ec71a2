"""A graph whose sizes are symbols, at sizes of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sympy
import torch

from graphopt.device.storages import planned_bytes, same_device
from graphopt.graph.nodes import copied_bytes
from graphopt.graph.step_graph import StepGraph, ValueInfo


class AtSizes:
    """What numbers of a graph are where its symbols are these; a symbol that is not given is as it was captured."""

    def __init__(self, sizes: Mapping[sympy.Symbol, int]) -> None:
        self.sizes = sizes
        self._known: dict[sympy.Expr, Any] = {}

    def __call__(self, number: Any) -> Any:
        """The number that a symbol stands for; anything else as it is."""
        if not isinstance(number, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return number
        expression = number.node.expr
        if not expression.free_symbols & self.sizes.keys():
            return number.node.hint
        if expression not in self._known:
            self._known[expression] = self.of(expression)
        return self._known[expression]

    def of(self, expression: sympy.Expr) -> Any:
        """What an expression in the symbols is."""
        return evaluated(expression, self.sizes)


def evaluated(expression: sympy.Expr, sizes: Mapping[sympy.Symbol, int]) -> Any:
    """The number that an expression in sizes is: whole where it is whole, or whether it holds."""
    value = expression.xreplace({symbol: sympy.Integer(size) for symbol, size in sizes.items()})
    if value.is_Boolean:
        return bool(value)
    return int(value) if value.is_Integer else float(value.evalf())


def step_at(step: StepGraph, at: AtSizes) -> StepGraph:
    """The step graph with its values' shapes and nominal bytes at other sizes."""
    return replace(step, values=tuple(_value_at(value, step.device, at) for value in step.values))


def _value_at(value: ValueInfo, device: torch.device, at: AtSizes) -> ValueInfo:
    traced = value.traced
    if traced is None:
        return value
    shape = tuple(int(at(size)) for size in traced.shape)
    if value.kind == "resident":
        return replace(value, shape=shape)
    own = planned_bytes(int(at(traced.untyped_storage().nbytes())), device) if same_device(traced, device) else 0
    return replace(value, shape=shape, bytes=max(own, copied_bytes(value.node, device, lambda size: int(at(size)))))
