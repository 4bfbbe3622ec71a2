"""Arithmetic on sizes that are symbols, looked up where it was done before.

A capture with symbols takes three times one without: for each tensor PyTorch computes numbers of elements and bytes,
compares strides, and asks each number in turn whether it is a constant. All of it goes through sympy, most of it again
and again with the same expressions: some 100,000 operations a layer and thousand tensors, of a few hundred kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import sympy
import torch
from torch._C import _get_dispatch_mode
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

_PROXY = torch._C._TorchDispatchModeKey.PROXY
#: Operations of two numbers, whose result follows from their expressions.
_OF_TWO = ("add", "sub", "mul", "eq", "ne", "gt", "lt", "le", "ge", "sym_max", "sym_min", "sym_and", "sym_or")
_PLAIN = (int, bool)


class _Known:
    """What is known of the expressions of one set of symbols, as long as no symbol is replaced by another."""

    def __init__(self) -> None:
        self.env: ShapeEnv | None = None
        self.version = -1
        self.numbers: dict[Any, int | None] = {}
        self.results: dict[Any, SymNode] = {}

    def of(self, env: ShapeEnv) -> _Known:
        """It itself, emptied where the symbols are others, or have come to mean another."""
        if env is not self.env or env._replacements_version_counter != self.version:
            self.env, self.version = env, env._replacements_version_counter
            self.numbers.clear()
            self.results.clear()
        return self


@contextmanager
def known_sums() -> Iterator[None]:
    """Inside, what was computed of symbols is not computed again; what is traced by proxies goes its way."""
    known = _Known()
    is_so_already = SymNode.add.__module__ == __name__
    with ExitStack() as stack:
        # where a log of each operation is wanted, each is made
        if not is_so_already and not torch._logging._internal.GET_DTRACE_STRUCTURED:
            for name in _OF_TWO:
                stack.enter_context(mock.patch.object(SymNode, name, _looked_up(name, known)))
            stack.enter_context(mock.patch.object(SymNode, "maybe_as_int", _looked_up_number(known)))
            stack.enter_context(mock.patch.object(SymNode, "wrap_int", _wrap_int))
        yield


def _looked_up(name: str, known: _Known) -> Callable[[SymNode, SymNode], SymNode]:
    compute: Callable[[SymNode, SymNode], SymNode] = getattr(SymNode, name)

    def operation(self: SymNode, other: SymNode) -> SymNode:
        env = self.shape_env
        if (
            env is None
            or _get_dispatch_mode(_PROXY) is not None
            or type(self._hint) not in _PLAIN
            or type(other._hint) not in _PLAIN
            or env._translation_validation_enabled
        ):
            return compute(self, other)
        flags = self._optimized_summation, other._optimized_summation, self.pytype, other.pytype
        key = name, self._expr, other._expr, flags
        results = known.of(env).results
        found = results.get(key)
        if found is None:
            made = compute(self, other)
            if type(made._hint) in _PLAIN and made.constant is None:
                known.of(env).results[key] = made
            return made
        # a node of its own for each result, as proxies belong to nodes
        return SymNode(found._expr, env, found.pytype, found._hint, optimized_summation=found._optimized_summation)

    return operation


def _looked_up_number(known: _Known) -> Callable[[SymNode], int | None]:
    compute = SymNode.maybe_as_int

    def maybe_as_int(self: SymNode) -> int | None:
        if type(self.constant) is int:
            return self.constant
        if self.shape_env is None:
            return compute(self)
        numbers = known.of(self.shape_env).numbers
        try:
            return numbers[self._expr]
        except KeyError:
            numbers[self._expr] = number = compute(self)
            return number

    return maybe_as_int


def _wrap_int(self: SymNode, number: int) -> SymNode:
    return SymNode(sympy.Integer(number), self.shape_env, int, number, constant=number, fx_node=number)
