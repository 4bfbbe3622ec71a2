"""StepGraph: a joint graph, the roles of its inputs and outputs, and its ops and values.

Ops and values are what a planner sees; the fx nodes behind them are what is emitted. Aliasing is
followed at the level of storages: views and `getitem` are not ops, they belong to a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import fx

from graphopt.device.storages import planned_bytes, same_device, storage_key, tensors_in
from graphopt.graph.joint import JointGraph
from graphopt.problem.problem import Op, Problem, Value

BOUNDARY = "loss_boundary"


@dataclass(frozen=True)
class Transfer:
    """What an op without a node does with what op `of` made: it hands that on, or fetches it; or waits until it is
    written (not `is_fetch`).
    """

    of: int
    is_fetch: bool


@dataclass(frozen=True)
class OpInfo:
    """An op: its node (None for the boundary between forward and backward, and for transfers) and where it came from.

    `writes` are resident values that an op of the backward writes in place, for the next step to read.
    """

    name: str
    node: fx.Node | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    backward: bool
    recomputable: bool
    random: bool
    module_path: str
    source: str
    writes: tuple[int, ...] = ()
    transfer: Transfer | None = None


@dataclass(frozen=True)
class ValueInfo:
    """A value: the node that holds it first, and its storage.

    `kind` is "resident" (parameters, buffers, inputs, constants), "tangents", "activations",
    "gradients" or "outputs"; `bytes` are those of its storage as the device's allocator counts.
    """

    name: str
    node: fx.Node
    kind: str
    bytes: int
    shape: tuple[int, ...]
    dtype: str
    #: The tensor as it was traced, where its size is made of symbols.
    traced: torch.Tensor | None = None


@dataclass(frozen=True)
class StepGraph:
    """Forward and backward of one micro-batch, as AOTAutograd's joint graph.

    `home` maps every tensor node to its value; `ops[boundary]` is the pseudo-op between forward
    and backward: it reads the forward's outputs and produces the tangents.
    """

    joint: JointGraph
    device: torch.device
    ops: tuple[OpInfo, ...]
    values: tuple[ValueInfo, ...]
    outputs: tuple[int, ...]
    home: Mapping[fx.Node, int]
    static_inputs: frozenset[str]
    boundary: int
    graph_hash: str = field(default="")
    #: Nodes whose result is never stored: like views they are made where they are read, and read what they are made of.
    virtual: frozenset[fx.Node] = frozenset()

    @property
    def graph_module(self) -> fx.GraphModule:
        """The joint graph's module."""
        return self.joint.module

    @property
    def has_changing_sizes(self) -> bool:
        """Whether the graph serves inputs of several sizes."""
        return any(value.traced is not None for value in self.values)

    @cached_property
    def late_writers(self) -> tuple[int, ...]:
        """Ops of the backward that write resident values which a recomputation may read, parameters that is."""
        read = {value for op in self.ops if op.recomputable for value in op.inputs}
        return tuple(i for i, op in enumerate(self.ops) if read.intersection(op.writes))

    @property
    def compute_nodes(self) -> tuple[fx.Node, ...]:
        """The ops' nodes, in op order, without the boundary: what a cost model prices."""
        return tuple(op.node for op in self.ops if op.node is not None)


def with_storage_bytes(graph: StepGraph, storage_bytes: Sequence[tuple[int, ...] | None]) -> StepGraph:
    """The graph with its values' bytes as the device really allocates them, where they were measured.

    One entry for each of `graph.compute_nodes`: the bytes of each output tensor's storage, or None.
    A kernel may hand out more than its result needs: `mse_loss` returns a scalar on a whole input.
    """
    measured: dict[int, int] = {}
    by_storage = {storage_key(t): home for node, home in graph.home.items() for t in tensors_of(node)}
    for op, sizes in zip((op for op in graph.ops if op.node is not None), storage_bytes, strict=True):
        tensors = tensors_of(op.node) if op.node is not None else ()
        if sizes is not None and len(sizes) == len(tensors):
            for tensor, size in zip(tensors, sizes, strict=True):
                value = by_storage.get(storage_key(tensor), op.outputs[0] if len(op.outputs) == 1 else -1)
                if value in op.outputs and same_device(tensor, graph.device):
                    measured[value] = max(measured.get(value, 0), planned_bytes(size, graph.device))
    values = tuple(replace(v, bytes=max(v.bytes, measured.get(i, 0))) for i, v in enumerate(graph.values))
    return replace(graph, values=values)


def to_problem(graph: StepGraph, seconds: Sequence[float], workspace_bytes: Sequence[int]) -> Problem:
    """The planner's problem, from one price for each of `graph.compute_nodes`."""
    prices = iter(zip(seconds, workspace_bytes, strict=True))
    ops = []
    for op in graph.ops:
        price = next(prices) if op.node is not None else (0.0, 0)
        pinned = op.random or not op.recomputable
        ops.append(Op(op.name, price[0], price[1], op.inputs, op.outputs, op.backward, op.recomputable, pinned))
    return Problem(tuple(Value(value.bytes) for value in graph.values), tuple(ops), graph.outputs)


def tensors_of(node: fx.Node) -> tuple[torch.Tensor, ...]:
    """The (fake) tensors that a node holds, flattened."""
    return tuple(tensors_in(node.meta.get("val")))
