"""Which tangents a graph's backward is made for."""

from __future__ import annotations

from collections.abc import Callable

from graphopt.graph.joint import JointGraph
from graphopt.graph.step_graph import StepGraph
from graphopt.passes.joint.undefined_tangents import undefined_nodes

#: Positions of the tangents that a graph with all of them is planned for.
ChooseTangents = Callable[[StepGraph], frozenset[int]]


def all_tangents(joint: JointGraph) -> frozenset[int]:
    """Every output has a gradient."""
    return frozenset(range(len(joint.tangents)))


def loss_alone(joint: JointGraph) -> frozenset[int]:
    """The outputs of one element, where they train all that is trained: a model's loss beside what else it returns.

    All of them where some input has a gradient through other outputs only.
    """
    tangents = joint.tangents
    losses = frozenset(i for i, node in enumerate(tangents) if node.meta["val"].numel() == 1)
    others = [node for i, node in enumerate(tangents) if i not in losses]
    if not losses or undefined_nodes(joint.graph, others).intersection(joint.gradients.values()):
        return all_tangents(joint)
    return losses
