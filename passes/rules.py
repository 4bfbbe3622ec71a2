"""What no pass may break, whatever graph it edits: rules for `run_passes`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from graphopt.graph.nodes import is_collective, is_mutating, is_random
from graphopt.graph.roles import DESCRIPTOR
from graphopt.passes.run_passes import HasGraph

#: What a rule gives back: told whether a pass says that it changed the graph, it says what is broken, or "".
Still = Callable[[bool], str]


def graph_is_well_formed(edited: HasGraph) -> Still:
    """Nodes stand in topological order, under names of their own, and know who reads them."""

    def broken(_changed: bool) -> str:
        try:
            edited.graph.lint()
        except (RuntimeError, ValueError) as error:
            return str(error).splitlines()[0]
        nodes = set(edited.graph.nodes)
        strays = [f"{u} of {n}" for n in nodes for u in n.users if u not in nodes or n not in u.all_input_nodes]
        return f"readers that do not read: {', '.join(strays)}" if strays else ""

    return broken


def inputs_stay(edited: HasGraph) -> Still:
    """Inputs keep their order, names and descriptors; new ones stand behind them."""
    before = _inputs(edited.graph)

    def broken(_changed: bool) -> str:
        after = _inputs(edited.graph)
        if after[: len(before)] != before:
            return f"inputs were {_names(before)}, are {_names(after)}"
        bare = [node.name for node, _, descriptor in after[len(before) :] if descriptor is None]
        return f"inputs without a descriptor: {', '.join(bare)}" if bare else ""

    return broken


def writes_stay_in_order(edited: HasGraph) -> Still:
    """Whatever writes, communicates or checks is still there, once, and in the same order."""
    before = [node for node in edited.graph.nodes if _has_effect(node)]

    def broken(_changed: bool) -> str:
        after = [node for node in edited.graph.nodes if node in set(before)]
        return "" if after == before else f"writes were {before}, are {after}"

    return broken


def draws_stay(edited: HasGraph) -> Still:
    """The generator is asked as often as before, by what is left of those that asked in the same order."""
    before = _draws(edited.graph)

    def broken(_changed: bool) -> str:
        after = _draws(edited.graph)
        left, kept = [n for n in before if n in set(after)], [n for n in after if n in set(before)]
        return "" if len(after) == len(before) and left == kept else f"draws were {before}, are {after}"

    return broken


def passes_say_whether_they_changed_it(edited: HasGraph) -> Still:
    """A pass that returns False left every node as it was; one that returns True did not."""
    before = _content(edited.graph)

    def broken(changed: bool) -> str:
        if (_content(edited.graph) != before) is changed:
            return ""
        return f"it says {changed}, and the graph {'did not change' if changed else 'changed'}"

    return broken


ANY_GRAPH = (
    graph_is_well_formed,
    inputs_stay,
    writes_stay_in_order,
    draws_stay,
    passes_say_whether_they_changed_it,
)


def _inputs(graph: fx.Graph) -> list[tuple[fx.Node, object, object]]:
    return [(node, node.target, node.meta.get(DESCRIPTOR)) for node in graph.find_nodes(op="placeholder")]


def _names(inputs: list[tuple[fx.Node, object, object]]) -> str:
    return ", ".join(f"{target}: {descriptor}" for _, target, descriptor in inputs)


def _draws(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_function" and is_random(node)]


def _has_effect(node: fx.Node) -> bool:
    if node.op == "call_module":
        return True
    gives_nothing = isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.returns
    return node.op == "call_function" and (gives_nothing or is_mutating(node) or is_collective(node))


def _content(graph: fx.Graph) -> list[tuple[object, ...]]:
    return [(node, node.op, node.target, node.args, node.kwargs) for node in graph.nodes]
