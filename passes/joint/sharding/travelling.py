"""How much a sharded step gathers and scatters."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.compression import row_ops
from graphopt.graph.step_graph import StepGraph, tensors_of
from graphopt.kernels.sharding import ops
from graphopt.passes.joint.sharding.parcels import bytes_of


def gathered_bytes(step: StepGraph, schedule: Sequence[int]) -> int:
    """Bytes of all that is gathered in a schedule, each time that it is."""
    return sum(
        bytes_of(node) for op in schedule if (node := step.ops[op].node) is not None and node.target is ops.gather
    )


def scattered_bytes(step: StepGraph) -> int:
    """Bytes of the gradients that are scattered, as they travel."""
    nodes = step.compute_nodes
    whole = [bytes_of(g) for node in nodes if node.target is ops.begin_scatter_ for g in node.all_input_nodes]
    wires = [tensors_of(node)[0].nbytes for node in nodes if node.target is row_ops.begin_exchange_]
    return sum(whole) + sum(wires)
