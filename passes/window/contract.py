"""What passes over a window's graph may rely on, and what none of them may break."""

from __future__ import annotations

from torch import fx

from graphopt.graph.roles import Gradient, Update, with_role


def gradients_are_used(window: fx.GraphModule) -> bool:
    """Every gradient is read by what updates its parameter, or finishes it for the optimizer."""
    updates = set(with_role(window.graph, Update))
    return all(updates.intersection(node.users) for node in with_role(window.graph, Gradient))


def gradients_are_unscaled(window: fx.GraphModule) -> bool:
    """Gradients and their norms are what they are without a loss scale."""
    return not any("inverse_scale" in node.kwargs for node in with_role(window.graph, Update))


def updates_are_unconditional(window: fx.GraphModule) -> bool:
    """No flag can skip an update."""
    return not any("found_inf" in node.kwargs for node in with_role(window.graph, Update))
