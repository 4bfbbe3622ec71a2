"""Pass: parameters are this rank's rows, gathered where they are read, and their gradients are scattered.

The whole step's graph of ZeRO's third stage (Rajbhandari et al., "ZeRO", 2020, section 5.3), in which gathering
again is a recomputation that a planner weighs against all others. Only rows are resident; what was gathered is an
activation.
"""

from __future__ import annotations

from collections.abc import Collection

from graphopt.base.errors import UsageError
from graphopt.compression import row_ops
from graphopt.graph.joint import JointGraph
from graphopt.graph.nodes import source_line, writes_input
from graphopt.kernels.sharding import ops
from graphopt.passes.joint.sharding.gather import gather_parameters
from graphopt.passes.joint.sharding.how import CompressedRows, RowsOver
from graphopt.passes.joint.sharding.scatter import scatter_gradients

_SENDS = ops.gather, ops.begin_scatter_, row_ops.begin_exchange_


def shard(
    joint: JointGraph, positions: Collection[int], how: RowsOver, compressed: CompressedRows | None = None
) -> bool:
    """Shard the primals at these positions; True where there is one that was not sharded yet.

    With `compressed` the graph gets as new inputs what the methods keep, a flag for gradients that are not finite, a
    number to draw from and, where there is one, the loss scale. Raises UsageError where the forward writes one.
    """
    if not positions or any(node.target in _SENDS for node in joint.graph.nodes):
        return False
    primals, found = joint.primals, joint.gradients
    wholes = [primals[position] for position in sorted(positions)]
    for node in wholes if how.gathers else ():
        for user in node.users:
            if writes_input(user) and user.args[0] is node:
                where = source_line(user)
                raise UsageError(
                    f"the forward writes the parameter {node.name}{' at ' + where if where else ''}, which shard= "
                    "leaves in parts on all ranks: write it between steps, or make it a buffer"
                )
    if how.gathers:
        gather_parameters(joint, wholes, how)
    rows = scatter_gradients(joint, {at: node for at, node in found.items() if at in positions}, how, compressed)
    joint.set_gradients({**found, **rows})
    joint.graph.lint()
    joint.module.recompile()
    return True
