"""What passes over a joint graph may rely on, and what none of them may break."""

from __future__ import annotations

import torch
from torch import fx

from graphopt.graph.joint import JointGraph
from graphopt.graph.roles import DESCRIPTOR, Accumulator, MicroOption


def sizes_are_numbers(joint: JointGraph) -> bool:
    """No node but an unused input holds a symbolic size."""
    return not any(_is_symbolic(node) for node in joint.graph.nodes if node.op != "placeholder" or node.users)


def gradients_are_unused(joint: JointGraph) -> bool:
    """Nothing in the graph sums gradients up, or updates parameters with them."""
    return not any(isinstance(node.meta[DESCRIPTOR], (Accumulator, MicroOption)) for node in joint.added)


def no_gradient_is_returned(joint: JointGraph) -> bool:
    """Whatever becomes of gradients becomes of them in the graph."""
    return not joint.gradients


def _is_symbolic(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))
