"""Pass: gradients that nobody wants are not computed."""

from __future__ import annotations

from collections.abc import Iterable

from graphopt.graph.joint import JointGraph


def keep_gradients(joint: JointGraph, wanted: Iterable[int]) -> bool:
    """Return only the gradients of the primals at positions `wanted`; True where one was given up."""
    wanted, found = set(wanted), joint.gradients
    if wanted.issuperset(found):
        return False
    joint.set_gradients({position: node for position, node in found.items() if position in wanted})
    joint.graph.eliminate_dead_code()
    joint.module.recompile()
    return True
