"""What each module takes, as the tree that a model is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graphopt.problem.plan import ModuleShare

#: Where what is in no module is shown.
OUTSIDE = "(outside of modules)"


@dataclass
class ModuleNode:
    """A module with all that is in it: bytes at the peak, what is kept, seconds, what runs again and for how long."""

    name: str
    path: str
    peak_bytes: int = 0
    kept_bytes: int = 0
    seconds: float = 0.0
    recomputed: int = 0
    again_seconds: float = 0.0
    children: list[ModuleNode] = field(default_factory=list)


def module_tree(model: str, shares: Sequence[ModuleShare]) -> ModuleNode:
    """The model's node; modules of which nothing runs are not in it."""
    root = ModuleNode(model, "")
    nodes = {"": root}
    for share in shares:
        path = share.path or OUTSIDE
        parts = (path,) if path == OUTSIDE else tuple(path.split("."))
        way = [root]
        for depth in range(len(parts)):
            place = ".".join(parts[: depth + 1])
            if place not in nodes:
                nodes[place] = ModuleNode(parts[depth], place)
                way[-1].children.append(nodes[place])
            way.append(nodes[place])
        for node in way:
            node.peak_bytes += share.peak_bytes
            node.kept_bytes += share.kept_bytes
            node.seconds += share.seconds
            node.recomputed += share.recomputed
            node.again_seconds += share.again_seconds
    return root
