"""What a graph computes, as text and as a hash that is the same in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx
from torch._functorch._aot_autograd.descriptors import PlainAOTInput

from graphopt.graph.nodes import is_collective, is_view
from graphopt.graph.roles import DESCRIPTOR
from graphopt.graph.step_graph import tensors_of


def hash_graph(module: fx.GraphModule) -> str:
    """A hash of structure, shapes, strides, dtypes and constants, the same in every process."""
    return hashlib.sha256("".join(f"{line}\n" for line in spell_graph(module)).encode()).hexdigest()[:32]


def hash_with_tangents(graph_hash: str, defined: frozenset[int]) -> str:
    """The hash of a graph of which only the tangents at positions `defined` are defined."""
    return f"{graph_hash}-{'-'.join(map(str, sorted(defined)))}"


def tangents_of_hash(graph_hash: str, found: str) -> frozenset[int] | None:
    """The tangents with which a graph of `graph_hash` has the hash `found`; None where it is another graph's."""
    own, *positions = found.split("-")
    numbers = all(position.isdecimal() for position in positions)
    return frozenset(map(int, positions)) if own == graph_hash and positions and numbers else None


def spell_graph(module: fx.GraphModule) -> list[str]:
    """A line for each node, equal where nodes do the same.

    Which of several devices a tensor is on, and an argument that is named `rank`, are left out: they
    are what differs between processes that run one program.
    """
    number = {node: position for position, node in enumerate(module.graph.nodes)}

    def spell(argument: object) -> str:
        if isinstance(argument, fx.Node):
            return f"%{number[argument]}"
        if isinstance(argument, (list, tuple)):
            return "[" + ",".join(spell(item) for item in argument) + "]"
        if isinstance(argument, dict):
            return "{" + ",".join(f"{key}:{spell(item)}" for key, item in sorted(argument.items())) + "}"
        if isinstance(argument, torch.device):
            return f"device(type={argument.type!r})"
        if isinstance(argument, fx.GraphModule) or callable(argument):
            return str(getattr(argument, "__name__", type(argument).__name__))
        return repr(argument)

    lines = []
    for node in module.graph.nodes:
        target = node.op if node.op in ("placeholder", "get_attr", "output") else str(node.target)
        shapes = [(tuple(t.shape), t.stride(), str(t.dtype), t.device.type) for t in tensors_of(node)]
        args, kwargs = _without_rank(node)
        lines.append(f"{node.op}|{target}|{spell(args)}|{spell(kwargs)}|{shapes}")
    return lines


def spell_program(module: fx.GraphModule) -> list[tuple[fx.Node, str]]:
    """Each op with a line that is equal where ops do the same, whatever the shapes of what they work on.

    Views, copies into another layout and whole numbers follow from shapes, or name the rank: they are left out.
    """
    return [
        (node, f"{_named(node.target)}({', '.join(_constants((node.args, node.kwargs)))})")
        for node in module.graph.nodes
        if node.op == "call_function" and node.target is not torch.ops.aten.clone.default
        if not is_view(node) and not is_collective(node)
    ]


def spell_inputs(module: fx.GraphModule) -> list[str]:
    """The layout of each input of the forward."""
    return [
        f"{[(tuple(t.shape), t.stride(), str(t.dtype)) for t in tensors_of(node)]}"
        for node in module.graph.find_nodes(op="placeholder")
        if isinstance(node.meta.get(DESCRIPTOR), PlainAOTInput)
    ]


def _named(target: object) -> str:
    return str(target) if isinstance(target, torch._ops.OpOverload) else str(getattr(target, "__name__", target))


def _constants(argument: object) -> Iterator[str]:
    if isinstance(argument, (list, tuple)):
        for item in argument:
            yield from _constants(item)
    elif isinstance(argument, Mapping):
        for key, item in argument.items():
            yield from (f"{key}={constant}" for constant in _constants(item))
    elif isinstance(argument, (bool, float, complex, str, torch.dtype)):
        yield repr(argument)


def _without_rank(node: fx.Node) -> tuple[Sequence[object], Mapping[str, object]]:
    """A node's arguments, the process's own number replaced."""
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    if "rank" not in names:
        return node.args, node.kwargs
    place = names.index("rank")
    args = ["rank" if position == place else argument for position, argument in enumerate(node.args)]
    return args, {name: "rank" if name == "rank" else argument for name, argument in node.kwargs.items()}
