"""How much a sharded step gathers and scatters."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.graph.step_graph import StepGraph
from graphopt.kernels.sharding import ops
from graphopt.passes.joint.sharding.parcels import bytes_of


def gathered_bytes(step: StepGraph, schedule: Sequence[int]) -> int:
    """Bytes of all that is gathered in a schedule, each time that it is."""
    return sum(
        bytes_of(node) for op in schedule if (node := step.ops[op].node) is not None and node.target is ops.gather
    )


def scattered_bytes(step: StepGraph) -> int:
    """Bytes of the gradients that are scattered."""
    sent = [node for node in step.compute_nodes if node.target is ops.begin_scatter_]
    return sum(bytes_of(gradient) for node in sent for gradient in node.all_input_nodes)
