"""Pass: gradients are summed over ranks while the backward goes on, compressed or as they are.

Each parcel of gradients starts on its way right behind the last of them; what earlier ones still have to say is said
when the next one has started, so that the network is never without work; nothing is waited for before it is read.
Collectives stand in one order in every schedule, and that is the order of the captured backward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode

from graphopt.compression import collectives
from graphopt.compression.bucket import Bucket, Message, Shape
from graphopt.compression.interleaving import Interleaved
from graphopt.compression.local_clip import clip_locally
from graphopt.compression.methods import DGC, Compression
from graphopt.compression.protocols import state_shapes
from graphopt.device.ranks import Ranks
from graphopt.graph.nodes import is_collective, is_view, is_wait
from graphopt.graph.roles import DESCRIPTOR, RUN_ONCE, Accumulator, Draw, MicroKept, MicroScale, Overflow, add_input
from graphopt.graph.step_graph import tensors_of
from graphopt.passes.joint.buckets import Parcel, parcels

aten = torch.ops.aten
_c10d = torch.ops._c10d_functional


def compress(
    joint: fx.GraphModule, ranks: Ranks, methods: Mapping[int, Compression | None], *, scaled: bool = False
) -> bool:
    """Sum what stands in the accumulators over ranks; True where there is one, and it was not summed yet.

    `methods` says how the gradient of a flat input travels; those that are not named, are not float32 or are too
    small to be compressed go as they are. Where one is compressed the graph gets as new inputs what the methods keep,
    a flag for gradients that are not finite, a number to draw from and, with `scaled`, the loss scale.
    """
    graph = joint.graph
    sums = _sums(graph)
    # a model may have collectives of its own; of those here each runs once
    if not sums or any(is_collective(node) and node.meta.get(RUN_ONCE) for node in graph.nodes):
        return False
    shapes, dtypes = [each.shape for each in sums], [each.value.dtype for each in sums]
    made = parcels(shapes, dtypes, [methods.get(each.index) for each in sums])
    _ExchangeWriter(graph, ranks, sums, scaled=scaled and any(parcel.method for parcel in made)).write(made)
    graph.lint()
    joint.recompile()
    return True


def in_order_of_readiness(graph: fx.Graph) -> list[tuple[int, Shape]]:
    """Flat input and shape of each gradient that the graph sums up, in the order in which they are complete."""
    return [(each.index, each.shape) for each in _sums(graph)]


def sent_bytes(graph: fx.Graph, world: int) -> int:
    """What a rank sends of gradients in a graph, if rings carry them; what few bytes agree is left out."""
    total = 0
    for node in graph.nodes:
        if node.meta.get(RUN_ONCE) and is_collective(node) and not is_wait(node) and "max" not in node.args:
            (value,) = tensors_of(node.all_input_nodes[0])
            times = {"all_reduce_": 2 * (world - 1) / world, "all_to_all_single": (world - 1) / world}
            total += int(value.numel() * value.itemsize * times.get(node.target._opname, world - 1))
    return total


@dataclass(frozen=True)
class _Sum:
    """An accumulator of the graph, and the node after which it holds its gradient."""

    accumulator: fx.Node
    written: fx.Node

    @property
    def index(self) -> int:
        return self.accumulator.meta[DESCRIPTOR].index  # type: ignore[no-any-return]

    @property
    def value(self) -> torch.Tensor:
        return self.accumulator.meta["val"]  # type: ignore[no-any-return]

    @property
    def shape(self) -> Shape:
        return tuple(map(int, self.value.shape))


def _sums(graph: fx.Graph) -> list[_Sum]:
    """In the order in which the backward has them ready."""
    position = {node: i for i, node in enumerate(graph.nodes)}

    def written(node: fx.Node) -> fx.Node:
        users = [written(user) if is_view(user) else user for user in node.users]
        return min(users, key=position.__getitem__)

    inputs = graph.find_nodes(op="placeholder")
    found = [_Sum(node, written(node)) for node in inputs if isinstance(node.meta.get(DESCRIPTOR), Accumulator)]
    return sorted(found, key=lambda each: position[each.written])


class _Recorder(fx.proxy.GraphAppendingTracer):
    """Makes nodes of the backward of what is done with proxies, with the values that they would hold."""

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        given, named = fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
        mode = detect_fake_mode([t for source in node.all_input_nodes for t in tensors_of(source)])
        assert mode is not None
        with mode:
            node.meta = _meta(node.target(*given, **named))  # type: ignore[operator]
        return node


class _ExchangeWriter:
    """Writes the protocols of parcels into the graph."""

    def __init__(self, graph: fx.Graph, ranks: Ranks, sums: list[_Sum], *, scaled: bool) -> None:
        self.graph, self.ranks, self.sums, self.scaled = graph, ranks, sums, scaled
        self.recorder = _Recorder(graph)
        self.interleaved = Interleaved(self.begin, lambda result: result)
        self.sent: list[fx.Node] = []
        self.flag: fx.Proxy | None = None
        self.shared: dict[str, Any] = {}

    def write(self, made: list[Parcel]) -> None:
        if any(parcel.method for parcel in made):
            self.add_shared()
        limits = {p.method.max_norm for p in made if isinstance(p.method, DGC) and p.method.max_norm is not None}
        output = self.graph.output_node()
        if limits:  # by a norm that is known when all gradients are
            gradients = [fx.Proxy(each.accumulator, self.recorder) for each in self.sums]
            with self.graph.inserting_before(output):
                clip_locally(gradients, min(limits), self.ranks.world, self.shared.get("inverse_scale"))
        for parcel in made:
            behind = self.sums[parcel.places[-1]].written
            with self.graph.inserting_before(output if limits else behind.next):
                self.interleaved.start(parcel.protocol(self.bucket(parcel)))
        with self.graph.inserting_before(output):
            self.interleaved.finish(self.agree)
        self.add_waits()

    def add_shared(self) -> None:
        scalar = self.sums[0].value.new_empty((), dtype=torch.float32)
        self.flag = self.input("overflow", Overflow(), scalar)
        self.shared["draw"] = self.input("draw", Draw(), 0)
        if self.scaled:
            self.shared["scale"] = self.input("scale", MicroScale(inverse=False), scalar)
            self.shared["inverse_scale"] = self.input("inverse_scale", MicroScale(inverse=True), scalar)

    def input(self, name: str, descriptor: object, value: object) -> fx.Proxy:
        return fx.Proxy(add_input(self.graph, name, descriptor, value), self.recorder)

    def begin(self, message: Message) -> fx.Proxy:
        """Nothing is waited for before all is written: only then is known who reads it first."""
        result: fx.Proxy = collectives.begin(message, self.ranks, message.tensor.node.meta["val"])
        self.sent.append(result.node)
        return result

    def agree(self) -> None:
        if self.flag is not None:
            self.add_wait(collectives.begin_to_agree(self.flag, self.ranks).node, self.graph.output_node())

    def bucket(self, parcel: Parcel) -> Bucket:
        sums = [self.sums[place] for place in parcel.places]
        state: dict[str, list[fx.Proxy]] = {}
        for each in sums:
            for key, shape in state_shapes(parcel.method, each.shape).items():
                like = each.value if shape == each.shape else each.value.new_empty(shape)
                name = f"{key}_{each.accumulator.name}"
                made = self.input(name, MicroKept(each.index, key), torch.empty_like(like))
                state.setdefault(key, []).append(made)
        return Bucket(
            shapes=tuple(each.shape for each in sums),
            gradients=[fx.Proxy(each.accumulator, self.recorder) for each in sums],
            overflow=self.flag,
            rank=self.ranks.rank,
            world=self.ranks.world,
            backend=self.ranks.backend,
            state=state,
            **self.shared,
        )

    def add_waits(self) -> None:
        position = {node: i for i, node in enumerate(self.graph.nodes)}
        for node in self.sent:
            self.add_wait(node, min(node.users, key=position.__getitem__, default=self.graph.output_node()))

    def add_wait(self, node: fx.Node, before: fx.Node) -> None:
        with self.graph.inserting_before(before):
            wait = self.graph.call_function(_c10d.wait_tensor.default, (node,))
        # it hands on what it is given, whatever its schema says
        wait.meta = _meta(node.meta["val"])
        node.replace_all_uses_with(wait, delete_user_cb=lambda user: user is not wait)


def _meta(value: object) -> dict[str, object]:
    """Nothing here runs again: it reads sums that change, and what it says to others is said."""
    return {"val": value, "partitioner_tag": "is_backward", RUN_ONCE: True}
