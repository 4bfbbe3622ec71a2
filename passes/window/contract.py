"""What passes over a window's graph may rely on, and what none of them may break."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import fx

from graphopt.graph.roles import OUTPUTS, ROLE, Tangent, Update, WindowGradient, with_role
from graphopt.passes.rules import ANY_GRAPH, Still


def gradients_are_used(window: fx.GraphModule) -> bool:
    """Every gradient is read by what updates its parameter, or finishes it for the optimizer."""
    updates = set(with_role(window.graph, Update))
    return all(updates.intersection(node.users) for node in with_role(window.graph, WindowGradient))


def gradients_are_unscaled(window: fx.GraphModule) -> bool:
    """Gradients and their norms are what they are without a loss scale."""
    return not any("inverse_scale" in node.kwargs for node in with_role(window.graph, Update))


def updates_are_unconditional(window: fx.GraphModule) -> bool:
    """No flag can skip an update."""
    return not any("found_inf" in node.kwargs for node in with_role(window.graph, Update))


def outputs_keep_their_places(window: fx.GraphModule) -> Still:
    """It returns the same loss, and norm and found_inf where it did."""
    before = _outputs(window)

    def broken(_changed: bool) -> str:
        after = _outputs(window)
        kept = len(after) == len(OUTPUTS) and after[0] is before[0]
        lost = kept and any(was is not None and now is None for was, now in zip(before[1:3], after[1:3], strict=True))
        return "" if kept and not lost else f"it returned {before}, and now {after}"

    return broken


def roles_stay(window: fx.GraphModule) -> Still:
    """There is one node for each gradient, tangent and update that there was."""
    kinds = WindowGradient, Tangent, Update
    before = Counter(node.meta[ROLE] for kind in kinds for node in with_role(window.graph, kind))

    def broken(_changed: bool) -> str:
        after = Counter(node.meta[ROLE] for kind in kinds for node in with_role(window.graph, kind))
        wrong = [str(role) for role, count in before.items() if after[role] != count]
        return f"roles that are there no more, or more than once: {', '.join(wrong)}" if wrong else ""

    return broken


RULES = (*ANY_GRAPH, outputs_keep_their_places, roles_stay)


def _outputs(window: fx.GraphModule) -> Any:
    return window.graph.output_node().args[0]
