"""Numbers in a boxed graph that differ from call to call, sizes mostly: they follow from those among its inputs.

They are computed in Python in front of each run, a few additions and products, and handed over behind the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from graphopt.graph.numbers import is_number

#: What may be wanted where a whole number is given, and where a fraction is, to mean from C++ what it does from Python.
#: A whole one is no fraction there: the binding converts it.
_WHOLE, _FRACTION = ("IntType", "SymIntType", "NumberType", "TensorType"), ("FloatType", "NumberType", "TensorType")


def numbers_are_computed(nodes: Sequence[fx.Node]) -> bool:
    """Whether every number that a graph reads follows from inputs, and stands where one of its kind may."""
    return all(_is_computed(node) for node in nodes if is_number(node) and node.users)


def _is_computed(node: fx.Node) -> bool:
    if not isinstance(node.meta["val"], (torch.SymInt, torch.SymFloat)):
        return False
    if node.op == "call_function" and (node.kwargs or not all(map(_is_given, _flat(node.args)))):
        return False
    return all(is_number(user) or user.op == "output" or _is_wanted(user, node) for user in node.users)


def _is_given(item: Any) -> bool:
    return type(item) in (int, float) or (isinstance(item, fx.Node) and is_number(item))


def _flat(items: Sequence[Any]) -> list[Any]:
    """With the items of lists, which sums of many are given."""
    return [each for item in items for each in (item if isinstance(item, (list, tuple)) else (item,))]


def _is_wanted(user: fx.Node, node: fx.Node) -> bool:
    """Whether an operator takes such a number, in a list or alone, or a tensor in its place."""
    if type(user.target) is not OpOverload:
        return True  # a function in Python takes what it is given
    names = [argument.name for argument in user.target._schema.arguments]
    given = dict(zip(names, user.args, strict=False)) | user.kwargs
    read = [each for each in user.target._schema.arguments if _reads(given.get(each.name), node)]
    kinds = _WHOLE if isinstance(node.meta["val"], torch.SymInt) else _FRACTION
    return all(_wanted(each.real_type) in kinds for each in read)


def _reads(item: Any, node: fx.Node) -> bool:
    return item is node or (isinstance(item, (list, tuple)) and node in item)


def _wanted(wanted: Any) -> str:
    """The kind of one item; of a list of tensors, in which no number may stand, the list's."""
    while isinstance(wanted, torch.OptionalType):
        wanted = wanted.getElementType()
    if isinstance(wanted, torch.ListType) and wanted.getElementType().kind() in ("IntType", "SymIntType"):
        wanted = wanted.getElementType()
    return str(wanted.kind())


def is_taken_for_tensor(item: Any, wanted: Any) -> bool:
    """Whether a number stands where an operator wants a tensor."""
    return isinstance(item, fx.Node) and is_number(item) and _wanted(wanted) == "TensorType"


def is_list_of_sizes(argument: Any) -> bool:
    """Whether it is a list of whole numbers, some of which differ from call to call."""
    if not isinstance(argument, (list, tuple)):
        return False
    return all(type(item) is int or (isinstance(item, fx.Node) and is_number(item)) for item in argument)


class ComputedSizes:
    """The numbers of one graph that are computed, and the constants that stand beside some in lists.

    `places` are their registers, in the order of `of`; `literals` has those of the constants.
    """

    def __init__(self, nodes: Sequence[fx.Node], places: Mapping[fx.Node, int]) -> None:
        inputs = [node for node in nodes if node.op == "placeholder"]
        self._inputs = {node: position for position, node in enumerate(inputs) if is_number(node)}
        self._made = [node for node in nodes if node.op == "call_function" and is_number(node) and node.users]
        self.literals = {literal: len(places) + i for i, literal in enumerate(_literals(nodes))}
        self.places = [*(places[node] for node in self._made), *self.literals.values()]

    def of(self, args: Sequence[Any]) -> list[int | float]:
        """Their values, for a call with these inputs."""
        known = {node: args[position] for node, position in self._inputs.items()}
        for node in self._made:
            given = (self._value(item, known) for item in node.args)
            known[node] = node.target(*given)  # type: ignore[operator]
        return [*(known[node] for node in self._made), *self.literals]

    def _value(self, item: Any, known: Mapping[fx.Node, Any]) -> Any:
        if isinstance(item, (list, tuple)):
            return [self._value(each, known) for each in item]
        return known[item] if isinstance(item, fx.Node) else item


def _literals(nodes: Sequence[fx.Node]) -> list[int]:
    found: dict[int, None] = {}
    for node in nodes:
        for item in () if is_number(node) else (*node.args, *node.kwargs.values()):
            mixed = isinstance(item, (list, tuple)) and any(isinstance(each, fx.Node) for each in item)
            if mixed and is_list_of_sizes(item):
                found |= {each: None for each in item if type(each) is int}  # type: ignore[union-attr]
    return list(found)
