"""New nodes of a joint graph while a region is being rewritten: with what they hold, and where they are to stand."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves, tree_map

from graphopt.device.storages import storage_key
from graphopt.graph.nodes import has_effect, is_random
from graphopt.graph.roles import DESCRIPTOR, RUN_ONCE
from graphopt.graph.step_graph import tensors_of
from graphopt.passes.joint.chunks.ops import tensor
from graphopt.passes.joint.chunks.rows import Rows

aten = torch.ops.aten


class Writer:
    """Writes nodes at the end of a graph, in the order in which they shall run; `put_in_order` gives them places.

    Nodes of a pass over pieces stand where the first node of the region stood that is in this pass.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self._place = {node: (position, 0) for position, node in enumerate(graph.nodes)}
        self._behind = 0
        self._written = 0

    def begins_at(self, node: fx.Node) -> None:
        """What is written now is to stand in the place of `node`."""
        self._behind = self._place[node][0]

    def call(self, target: Any, args: tuple[Any, ...], like: fx.Node, **kwargs: Any) -> fx.Node:
        """A new node, said to be of where `like` is from; what it holds follows from its arguments."""
        node = self._written_node(target, args, kwargs, like)
        node.meta["val"] = result_of(node, like)
        return node

    def call_again(self, twin: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], like: fx.Node) -> fx.Node:
        """A new node that does what `twin` did, with arguments of the same shapes: little of it needs to be traced."""
        node = self._written_node(twin.target, args, kwargs, like)
        node.meta["val"] = _as_of_twin(node, twin)
        return node

    def _written_node(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], like: fx.Node) -> fx.Node:
        with self.graph.inserting_before(self.graph.output_node()):
            name = like.name if target is like.target else f"{like.name}_{getattr(target, '_opname', 'part')}"
            node = self.graph.create_node("call_function", target, args, kwargs, name=name)
        left_out = ("val", "tensor_meta", DESCRIPTOR, RUN_ONCE)
        node.meta = {key: item for key, item in like.meta.items() if key not in left_out}
        self._written += 1
        self._place[node] = (self._behind, self._written)
        return node

    def flattened(self, node: fx.Node, rows: Rows, like: fx.Node) -> fx.Node:
        """The node with its dimensions of rows as one."""
        if rows.count == 1:
            return node
        value = tensor(node)
        shape = [*value.shape[: rows.first], -1, *value.shape[rows.end :]]
        try:
            value.view(shape)
        except (RuntimeError, ValueError):  # of fake tensors the one or the other
            node = self.call(aten.clone.default, (node,), like, memory_format=torch.contiguous_format)
        return self.call(aten.view.default, (node, shape), like)

    def put_in_order(self) -> None:
        """Give each node its place, and what it reads a place in front of it."""
        inputs = {node: (-1, number) for number, node in enumerate(self.graph.find_nodes(op="placeholder"))}
        output = self.graph.output_node()
        waiting = sorted(self.graph.nodes, key=lambda node: inputs.get(node, self._place[node]), reverse=True)
        placed: list[fx.Node] = []
        done = {output}
        while waiting:
            node = waiting[-1]
            missing = [source for source in node.all_input_nodes if source not in done]
            if missing and node not in done:
                waiting.extend(reversed(missing))
                continue
            waiting.pop()
            if node not in done:
                done.add(node)
                placed.append(node)
        for node in placed:
            output.prepend(node)


def result_of(node: fx.Node, like: fx.Node) -> Any:
    """What a node holds, from what its inputs hold; traced as `like` was, where it has none."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    with detect_fake_mode(tensors_of(like)) or nullcontext():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _as_of_twin(node: fx.Node, twin: fx.Node) -> Any:
    """What a node holds: tensors as its twin's are, where that made new memory. What shares some is traced."""
    made = {storage_key(each) for each in tensors_of(twin)}
    read = {storage_key(each) for source in twin.all_input_nodes for each in tensors_of(source)}
    held = twin.meta["val"]
    if not made.isdisjoint(read) or not all(type(each) is FakeTensor for each in tree_leaves(held)):
        return result_of(node, twin)
    return tree_map(_another, held)


def _another(fake: FakeTensor) -> FakeTensor:
    """One more of its shape."""
    size, stride = fake.size(), fake.stride()
    return FakeTensor(fake.fake_mode, torch.empty_strided(size, stride, dtype=fake.dtype, device="meta"), fake.device)


def that_keep_order(graph: fx.Graph) -> list[str]:
    """Names of the nodes that draw, write or communicate, in order."""
    return [n.name for n in graph.nodes if n.op == "call_function" and (is_random(n) or has_effect(n))]


def users_outside(node: fx.Node, members: Iterable[fx.Node]) -> list[fx.Node]:
    """Who reads a node of the region and is none of it."""
    inside = set(members)
    return [user for user in node.users if user not in inside]
