"""Which parameters, or gradients, travel together: large ones alone, in place, small ones in a message of many."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx

from graphopt.graph.step_graph import tensors_of
from graphopt.kernels.sharding.transport import ALONE_BYTES


def parcels(nodes: Iterable[fx.Node], kind: Callable[[fx.Node], object] = lambda _: None) -> list[list[fx.Node]]:
    """Cut nodes that hold a tensor each into parcels, in the order in which these are complete.

    Those in one parcel have one dtype, and are of one `kind`.
    """
    found: list[list[fx.Node]] = []
    open_parcels: dict[object, list[fx.Node]] = {}
    for node in nodes:
        if bytes_of(node) >= ALONE_BYTES:
            found.append([node])
            continue
        (tensor,) = tensors_of(node)
        key = tensor.dtype, kind(node)
        parcel = open_parcels.setdefault(key, [])
        parcel.append(node)
        if sum(map(bytes_of, parcel)) >= ALONE_BYTES:
            found.append(open_parcels.pop(key))
    return [*found, *open_parcels.values()]


def bytes_of(node: fx.Node) -> int:
    """Bytes of the tensors that a node holds."""
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors_of(node))
