"""StepGraph: a joint graph, the roles of its inputs and outputs, and its ops and values.

Ops and values are what a planner sees; the fx nodes behind them are what is emitted. Aliasing is
followed at the level of storages: views and `getitem` are not ops, they belong to a value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import fx

from graphopt.device.allocator import at_least, at_most
from graphopt.graph.joint import JointGraph
from graphopt.problem.problem import Op, Problem, Value

BOUNDARY = "loss_boundary"


@dataclass(frozen=True)
class OpInfo:
    """An op: its node (None for the boundary between forward and backward) and where it came from.

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

    @property
    def graph_module(self) -> fx.GraphModule:
        """The joint graph's module."""
        return self.joint.module

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
    return tuple(_tensors_in(node.meta.get("val")))


def _tensors_in(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)


def storage_key(tensor: torch.Tensor) -> int:
    """Identity of a tensor's storage, as long as the tensor lives."""
    return int(tensor.untyped_storage()._cdata)


def storage_bytes(tensor: torch.Tensor, device: torch.device) -> int:
    """Bytes that the allocator of `device` hands out for the tensor's storage; 0 on another device."""
    return allocated_bytes(int(tensor.untyped_storage().nbytes()), device) if same_device(tensor, device) else 0


def allocated_bytes(number_bytes: int, device: torch.device) -> int:
    """Requested bytes as the allocator counts them, at the least: CUDA's caching allocator rounds up to 512."""
    return at_least(number_bytes) if device.type == "cuda" else number_bytes


def planned_bytes(number_bytes: int, device: torch.device) -> int:
    """The most that the allocator may count for a tensor of so many bytes that is to be made."""
    return at_most(number_bytes, device) if device.type == "cuda" else number_bytes


def same_device(tensor: torch.Tensor, device: torch.device) -> bool:
    """True where the tensor takes memory on `device`."""
    return tensor.device.type == device.type


def unique_storage_bytes(tensors: Iterable[torch.Tensor], device: torch.device) -> int:
    """Bytes of the distinct storages behind `tensors` on `device`."""
    return sum({storage_key(tensor): storage_bytes(tensor, device) for tensor in tensors}.values())


def hash_graph(module: fx.GraphModule) -> str:
    """A hash of structure, shapes, strides, dtypes and constants, the same in every process."""
    return hashlib.sha256("".join(f"{line}\n" for line in spell_graph(module)).encode()).hexdigest()[:32]


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


def _without_rank(node: fx.Node) -> tuple[Sequence[object], Mapping[str, object]]:
    """A node's arguments, the process's own number replaced."""
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    if "rank" not in names:
        return node.args, node.kwargs
    place = names.index("rank")
    args = ["rank" if position == place else argument for position, argument in enumerate(node.args)]
    return args, {name: "rank" if name == "rank" else argument for name, argument in node.kwargs.items()}
