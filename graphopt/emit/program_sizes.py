"""Sizes in a boxed graph that differ from call to call: whole numbers that follow from those among its inputs.

They are computed in Python in front of each run, a few additions and products, and handed over behind the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from graphopt.graph.numbers import is_number


def numbers_are_sizes(nodes: Sequence[fx.Node]) -> bool:
    """Whether every number that a graph reads is a whole one, follows from inputs, and stands where one is wanted.

    Numbers in the place of tensors, and fractions, are converted by whoever reads them, each in its own way.
    """
    return all(_is_size(node) for node in nodes if is_number(node) and node.users)


def _is_size(node: fx.Node) -> bool:
    if not isinstance(node.meta["val"], torch.SymInt):
        return False
    if node.op == "call_function":
        given = node.args if not node.kwargs else (None,)
        if not all(type(item) is int or (isinstance(item, fx.Node) and is_number(item)) for item in given):
            return False
    return all(is_number(user) or user.op == "output" or _is_wanted(user, node) for user in node.users)


def _is_wanted(user: fx.Node, node: fx.Node) -> bool:
    """Whether an operator takes it as a size, in a list or alone, and not as a tensor or as any number."""
    if type(user.target) is not OpOverload:
        return True  # a function in Python takes what it is given
    names = [argument.name for argument in user.target._schema.arguments]
    given = dict(zip(names, user.args, strict=False)) | user.kwargs
    read = [each for each in user.target._schema.arguments if _reads(given.get(each.name), node)]
    return all(_of_sizes(each.real_type) for each in read)


def _reads(item: Any, node: fx.Node) -> bool:
    return item is node or (isinstance(item, (list, tuple)) and node in item)


def _of_sizes(wanted: Any) -> bool:
    while isinstance(wanted, (torch.OptionalType, torch.ListType)):
        wanted = wanted.getElementType()
    return wanted.kind() in ("IntType", "SymIntType")


def is_list_of_sizes(argument: Any) -> bool:
    """Whether it is a list of whole numbers, some of which differ from call to call."""
    if not isinstance(argument, (list, tuple)):
        return False
    return all(type(item) is int or (isinstance(item, fx.Node) and is_number(item)) for item in argument)


class ComputedSizes:
    """The sizes of one graph that are computed, and the constants that stand beside some in lists.

    `places` are their registers, in the order of `of`; `literals` has those of the constants.
    """

    def __init__(self, nodes: Sequence[fx.Node], places: Mapping[fx.Node, int]) -> None:
        inputs = [node for node in nodes if node.op == "placeholder"]
        self._inputs = {node: position for position, node in enumerate(inputs) if is_number(node)}
        self._made = [node for node in nodes if node.op == "call_function" and is_number(node) and node.users]
        self.literals = {literal: len(places) + i for i, literal in enumerate(_literals(nodes))}
        self.places = [*(places[node] for node in self._made), *self.literals.values()]

    def of(self, args: Sequence[Any]) -> list[int]:
        """Their values, for a call with these inputs."""
        known = {node: args[position] for node, position in self._inputs.items()}
        for node in self._made:
            given = (known[item] if isinstance(item, fx.Node) else item for item in node.args)
            known[node] = node.target(*given)  # type: ignore[operator]
        return [*(known[node] for node in self._made), *self.literals]


def _literals(nodes: Sequence[fx.Node]) -> list[int]:
    found: dict[int, None] = {}
    for node in nodes:
        for item in (*node.args, *node.kwargs.values()):
            mixed = isinstance(item, (list, tuple)) and any(isinstance(each, fx.Node) for each in item)
            if mixed and is_list_of_sizes(item):
                found |= {each: None for each in item if type(each) is int}  # type: ignore[union-attr]
    return list(found)
