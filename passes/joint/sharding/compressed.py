"""Gradients that are scattered compressed: the nodes that send them, and those that write the sums of their rows."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode

from graphopt.compression import row_ops
from graphopt.compression.bucket import Shape
from graphopt.compression.methods import EightBit
from graphopt.compression.protocols import compressible
from graphopt.compression.rows import ByRows, copies_scratch_bytes, decode_scratch_bytes, encode_scratch_bytes
from graphopt.graph.joint import JointGraph
from graphopt.graph.roles import DESCRIPTOR, PRICE, Beta, Draw, MicroKept, MicroScale, Overflow, add_input
from graphopt.passes.joint.sharding.how import CompressedRows, RowsOver
from graphopt.passes.joint.sharding.parcels import bytes_of


class CompressedWriter:
    """Writes into a joint graph how gradients are sent; `place` has the positions of their primals."""

    def __init__(
        self, joint: JointGraph, how: RowsOver, compressed: CompressedRows, place: Mapping[fx.Node, int]
    ) -> None:
        self.graph, self.how, self.compressed, self.place = joint.graph, how, compressed, place
        self.primals = joint.primals
        some = next(iter(place)).meta["val"]
        mode = detect_fake_mode([some])
        assert mode is not None
        self.mode = mode
        with mode:
            scalar = some.new_empty((), dtype=torch.float32)
        self.overflow, self.draw = self._input("overflow", Overflow(), scalar), self._input("draw", Draw(), 0)
        self.beta = self._input("beta_of_kept", Beta(), 1.0)
        self.scale = self.inverse_scale = None
        if compressed.scaled:
            self.scale = self._input("scale", MicroScale(inverse=False), scalar)
            self.inverse_scale = self._input("inverse_scale", MicroScale(inverse=True), scalar)
        self.kept = {node: self._kept_of(node) for node in place if isinstance(self.method_of(node), EightBit)}

    def _input(self, name: str, descriptor: object, value: object) -> fx.Node:
        return add_input(self.graph, name, descriptor, value)

    def _kept_of(self, gradient: fx.Node) -> tuple[fx.Node, fx.Node]:
        """What is kept back of a gradient: as it was before the step, and as it becomes."""
        primal = self.primals[self.place[gradient]]
        index = primal.meta[DESCRIPTOR].idx
        made = []
        for key in ("residual", "pending"):
            with self.mode:
                value = torch.empty_like(gradient.meta["val"])
            made.append(self._input(f"{key}_{primal.name}", MicroKept(index, key), value))
        return made[0], made[1]

    def method_of(self, gradient: fx.Node) -> ByRows | None:
        """How it travels; None for those that are too small, or not float32."""
        method = self.compressed.methods.get(self.place[gradient])
        value = gradient.meta["val"]
        return method if value.dtype == torch.float32 and compressible(method, _shape(value)) else None

    def begin(self, parcel: Sequence[fx.Node], meta: Mapping[str, Any]) -> fx.Node:
        """Send a parcel: a node of the wire and of what is received."""
        method, shapes, pairs = self._of(parcel)
        residuals, pending = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        device = parcel[0].meta["val"].device
        node = self._call(
            parcel[-1],
            row_ops.begin_exchange_,
            (list(parcel), residuals, pending, self.overflow, self.inverse_scale, self.draw, self.beta),
            method,
            meta,
        )
        wire_bytes = node.meta["val"][0].numel()
        node.meta[PRICE] = (self.how.seconds(wire_bytes), encode_scratch_bytes(method, shapes, self.how.world, device))
        return node

    def end(self, parcel: Sequence[fx.Node], sent: fx.Node, behind: fx.Node, meta: Mapping[str, Any]) -> fx.Node:
        """Wait for it: a node of this rank's rows of the sums."""
        method, shapes, pairs = self._of(parcel)
        items = []
        for number in (1, 0):
            with self.graph.inserting_after(sent):
                items.append(self.graph.call_function(operator.getitem, (sent, number)))
            items[-1].meta = {**meta, "val": sent.meta["val"][number]}
        pending = [pair[1] for pair in pairs] if self.how.copies else []
        node = self._call(
            behind if behind is not sent else items[0],
            row_ops.end_exchange_,
            (items[1], items[0], pending, self.overflow, self.scale, self.draw, row_ops.flat_shapes(shapes)),
            method,
            meta,
        )
        rows = [_shape(value) for value in node.meta["val"]]
        scratch_bytes = decode_scratch_bytes(method, rows, parcel[0].meta["val"].device)
        seconds = 0.0
        if self.how.copies:
            scratch_bytes = max(scratch_bytes, copies_scratch_bytes(method, rows, self.compressed.copies))
            seconds = self.how.seconds(bytes_of(items[1]) // self.how.world)
        node.meta[PRICE] = (seconds, scratch_bytes)
        return node

    def look_at(self, rows: Sequence[fx.Node], meta: Mapping[str, Any]) -> None:
        """What travels as it is raises the flag too, where a sum is not finite."""
        with self.graph.inserting_after(rows[-1]):
            node = self.graph.call_function(row_ops.note_not_finite_, (list(rows), self.overflow))
        node.meta = {**meta, "val": None, PRICE: (0.0, 0)}

    def _call(
        self, behind: fx.Node, target: Any, arguments: tuple[Any, ...], method: ByRows, meta: Mapping[str, Any]
    ) -> fx.Node:
        where = row_ops.spell(method), self.how.group, self.how.copies, self.how.world
        with self.graph.inserting_after(behind):
            node = self.graph.call_function(target, (*arguments, *where))
        given = fx.node.map_arg(node.args, lambda source: source.meta["val"])
        with self.mode:
            node.meta = {**meta, "val": target(*given)}
        return node

    def _of(self, parcel: Sequence[fx.Node]) -> tuple[ByRows, list[Shape], list[tuple[fx.Node, fx.Node]]]:
        method = self.method_of(parcel[0])
        assert method is not None
        shapes = [_shape(node.meta["val"]) for node in parcel]
        return method, shapes, [self.kept[node] for node in parcel if node in self.kept]


def _shape(value: torch.Tensor) -> Shape:
    return tuple(map(int, value.shape))
