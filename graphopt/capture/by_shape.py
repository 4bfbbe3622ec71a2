"""Where the graph for all sizes of inputs does not fit, and a graph for each can be run in pieces."""

from __future__ import annotations

from graphopt.capture.changing_sizes import Sizes
from graphopt.plan.choice import Choice


def goes_by_shape(sizes: Sizes, choice: Choice) -> bool:
    """Nothing fits: whether that is worth another try, as each shape is captured by itself from now on.

    A graph for many sizes stays whole, as its rows are not known. Where the user asked for one, it stays.
    """
    is_users = sizes.from_start or bool(sizes.exactly)
    if choice.numerics != "reordered" or sizes.are_constant or is_users or not sizes.has_some:
        return False
    sizes.cannot_change("the graph for all of them does not fit, and only a graph for each can be run in pieces")
    return True
