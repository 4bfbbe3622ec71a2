"""What follows from some nodes of a graph, and what they are made of."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx


def descendants(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """All that reads one of them, or what does."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        new = [user for user in waiting.pop().users if user not in found]
        found.update(new)
        waiting.extend(new)
    return found


def ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """All that one of them reads, or what that does."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        new = [source for source in waiting.pop().all_input_nodes if source not in found]
        found.update(new)
        waiting.extend(new)
    return found
