"""Numbers in a graph: those that may differ from call to call, and those that are constants of one capture."""

from __future__ import annotations

from typing import Any, cast

import sympy
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from graphopt.kernels.layout import is_dense

#: Numbers as they are traced.
SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


def is_number(node: fx.Node) -> bool:
    """True for a node that holds no tensor but a Python number.

    It follows from inputs alone, takes no bytes of the device, and is computed wherever it is read.
    """
    return isinstance(node.meta.get("val"), SYMBOLS)


def is_symbol(number: Any) -> bool:
    """Whether a size may differ from call to call."""
    return isinstance(number, torch.SymInt) and bool(number.node.expr.free_symbols)


def is_constant(number: Any) -> bool:
    """Whether a guard ties a number to its value, or it comes from data, and must be a constant to be planned for."""
    if not isinstance(number, SYMBOLS) or not number.node.has_hint():
        return True
    if isinstance(number, torch.SymInt):  # what a guard ties to its value is that value by now
        return not number.node.expr.free_symbols
    hint = number.node.hint
    if isinstance(number, torch.SymBool):
        return statically_known_true(number if hint else cast(torch.SymBool, torch.sym_not(number)))
    return statically_known_true(cast(torch.SymBool, number == hint))


def plain(number: Any) -> Any:
    """The number that a symbol stands for in this capture, guarded; anything else as it is."""
    if isinstance(number, torch.SymInt):
        return int(number)
    if isinstance(number, torch.SymFloat):
        return float(number)
    if isinstance(number, torch.SymBool):
        return bool(number)
    return number


def expression(number: Any) -> Any:
    """A size in symbols, to be compared with others without making a condition of that."""
    return number.node.expr if isinstance(number, torch.SymInt) else number


def _hint(number: Any) -> int:
    return int(number.node.hint) if isinstance(number, torch.SymInt) else int(number)


def fills_its_memory(tensor: torch.Tensor) -> bool:
    """Whether a traced tensor is all of its storage, each place once, at all sizes that its symbols stand for."""
    sizes = (tensor.untyped_storage().nbytes(), *tensor.shape, *tensor.stride())
    if not any(map(is_symbol, sizes)):
        return is_dense(tensor) and sizes[0] == tensor.nbytes
    axes = zip(tensor.stride(), tensor.shape, strict=True)
    steps = [(stride, expression(size)) for stride, size in axes if expression(size) != 1]
    expected: Any = sympy.Integer(1)
    for stride, size in sorted(steps, key=lambda step: _hint(step[0])):
        if sympy.expand(expression(stride) - expected) != 0:
            return False
        expected = expected * size
    return bool(sympy.expand(expected * tensor.itemsize - expression(sizes[0])) == 0)


def layout_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Sizes, strides and offset of a tensor, as they are traced."""
    if tensor.layout != torch.strided:
        return tuple(tensor.shape)
    return (*tensor.shape, *tensor.stride(), tensor.storage_offset())


def replace_input(user: fx.Node, node: fx.Node, number: object) -> None:
    """Let `user` read a number where it reads `node`."""

    def swap(source: fx.Node) -> Any:
        return number if source is node else source

    user.args = fx.node.map_arg(user.args, swap)
    user.kwargs = fx.node.map_arg(user.kwargs, swap)
