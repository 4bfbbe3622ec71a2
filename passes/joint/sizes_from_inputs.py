"""Pass: every size that the graph reads is made of the sizes of its inputs.

Tracing takes some sizes from intermediate tensors, which would have to be kept for them, and passes write sizes down as
symbols. Here each becomes a node, or a few, over the inputs that hold the symbols.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sympy
import torch
from torch import fx
from torch.fx.proxy import GraphAppendingTracer
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import OptimizedPythonReferenceAnalysis

from graphopt.graph.joint import JointGraph
from graphopt.graph.numbers import expression, is_number
from graphopt.graph.step_graph import tensors_of


def sizes_from_inputs(joint: JointGraph) -> bool:
    """Replace sizes that are read from tensors, and symbols among arguments, by nodes over inputs; True where any was.

    Sizes that hold other symbols than the inputs do become constants, guarded.
    """
    writer = SizeWriter(joint.graph, joint.primals)
    changed = False
    for node in list(joint.graph.nodes):
        if node.op == "call_function" and _is_read_from_tensor(node) and node.users:
            node.replace_all_uses_with(writer.written(node.meta["val"]))
            changed = True
        elif node.op == "call_function" and _has_symbols(node):
            args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), writer.written)
            node.args, node.kwargs = args, kwargs
            changed = True
    if changed:
        joint.graph.eliminate_dead_code(lambda node: node.op != "call_function" or not is_number(node))
        joint.module.recompile()
    return changed


class SizeWriter:
    """Writes sizes as nodes behind the inputs, each expression once.

    Symbols are read from those of `inputs` that are numbers; one that none of them is from a size of `tensors`.
    """

    def __init__(self, graph: fx.Graph, inputs: Iterable[fx.Node], tensors: Iterable[fx.Node] = ()) -> None:
        self._graph, self._behind = graph, graph.find_nodes(op="placeholder")[-1]
        self._tracer = GraphAppendingTracer(graph)
        self._made: dict[Any, fx.Node] = {}
        self._sizes: dict[Any, tuple[fx.Node, int]] = {}
        for node in inputs:
            if is_number(node) and isinstance(symbol := node.meta["val"].node.expr, sympy.Symbol):
                self._made.setdefault(symbol, node)
        for node in tensors:
            for axis, size in enumerate(map(expression, node.meta["val"].shape)):
                if isinstance(size, sympy.Symbol):
                    self._sizes.setdefault(size, (node, axis))

    def written(self, item: Any) -> Any:
        """A node for a size that is a symbol; anything else as it is."""
        if not isinstance(item, torch.SymInt):
            return item
        wanted = item.node.expr
        for symbol in sorted(wanted.free_symbols & self._sizes.keys() - self._made.keys(), key=str):
            self._made[symbol] = self._size(*self._sizes[symbol])
        if not wanted.free_symbols <= self._made.keys():
            return int(item)
        if wanted not in self._made:
            self._made[wanted] = self._node(wanted)
        return self._made[wanted]

    def _size(self, tensor: fx.Node, axis: int) -> fx.Node:
        with self._graph.inserting_after(self._behind):
            made = self._graph.call_function(torch.ops.aten.sym_size.int, (tensor, axis))
        made.meta["val"] = tensor.meta["val"].shape[axis]
        self._behind = made
        return made

    def _node(self, wanted: sympy.Expr) -> fx.Node:
        symbols: dict[Any, Any] = {s: fx.Proxy(self._made[s], self._tracer) for s in wanted.free_symbols}
        before = set(self._graph.nodes)
        with self._graph.inserting_after(self._behind):
            # each node is appended at the place of the last one
            made = sympy_interp(OptimizedPythonReferenceAnalysis, symbols, wanted)
        new = [node for node in self._graph.nodes if node not in before]
        for node in _in_order(new):
            self._behind.append(node)
            self._behind = node
            node.meta["val"] = node.target(*fx.node.map_arg(node.args, lambda source: source.meta["val"]))  # type: ignore
        return made.node  # type: ignore[no-any-return]


def _in_order(nodes: list[fx.Node]) -> list[fx.Node]:
    """Nodes behind what they read."""
    ordered: dict[fx.Node, None] = {}

    def add(node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source in waiting:
                add(source)
        if node in waiting:
            waiting.discard(node)
            ordered[node] = None

    waiting = set(nodes)
    for node in nodes:
        add(node)
    return list(ordered)


def _is_read_from_tensor(node: fx.Node) -> bool:
    """Whether a whole number is taken from a tensor's sizes."""
    return isinstance(node.meta.get("val"), torch.SymInt) and any(tensors_of(each) for each in node.all_input_nodes)


def _has_symbols(node: fx.Node) -> bool:
    found: list[bool] = []
    fx.node.map_aggregate((node.args, node.kwargs), lambda item: found.append(isinstance(item, torch.SymInt)))
    return any(found)
