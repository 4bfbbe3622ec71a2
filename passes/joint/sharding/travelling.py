"""How much a sharded step gathers and scatters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from graphopt.graph.step_graph import StepGraph, tensors_of
from graphopt.kernels.sharding import ops


def gathered_bytes(step: StepGraph, schedule: Sequence[int]) -> int:
    """Bytes of all that is gathered in a schedule, each time that it is."""
    return sum(_bytes(node) for op in schedule if (node := step.ops[op].node) is not None and node.target is ops.gather)


def scattered_bytes(step: StepGraph) -> int:
    """Bytes of the gradients that are scattered."""
    sent = [node for node in step.compute_nodes if node.target is ops.begin_scatter_]
    return sum(_bytes(gradient) for node in sent for gradient in node.all_input_nodes)


def _bytes(node: fx.Node) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors_of(node))
