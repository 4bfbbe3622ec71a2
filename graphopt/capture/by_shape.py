"""Where a graph for many sizes of inputs cannot be had, or does not fit, and one for each can."""

from __future__ import annotations

from graphopt.base.errors import BudgetError, CaptureError
from graphopt.capture.changing_sizes import Sizes
from graphopt.plan.choice import Choice


class UnguardedSizeError(CaptureError):
    """A graph was captured for one value of a size that nothing ties to that value."""


def goes_by_shape(sizes: Sizes, choice: Choice) -> bool:
    """Nothing fits: whether that is worth another try, as each shape is captured by itself from now on.

    A graph for many sizes stays whole, as its rows are not known. Where the user asked for one, it stays.
    """
    is_users = sizes.from_start or bool(sizes.exactly)
    if choice.numerics != "reordered" or sizes.are_constant or is_users or not sizes.has_some:
        return False
    sizes.cannot_change("the graph for all of them does not fit, and only a graph for each can be run in pieces")
    return True


def is_mended_by_shape(error: Exception, sizes: Sizes, choice: Choice) -> bool:
    """Whether another try may go where `error` came from, as each shape is captured by itself from now on."""
    if isinstance(error, UnguardedSizeError) and not sizes.are_constant:
        sizes.cannot_change(str(error))
        return True
    return isinstance(error, BudgetError) and goes_by_shape(sizes, choice)
