"""Which nodes of a joint graph hold which values."""

from __future__ import annotations

from torch import fx

from graphopt.device.storages import storage_key
from graphopt.graph.step_graph import StepGraph, tensors_of


def nodes_of_values(step: StepGraph) -> dict[int, list[fx.Node]]:
    """Every node that holds a value, views that are tuples of tensors (`split`) included."""
    by_storage = {storage_key(t): value for node, value in step.home.items() for t in tensors_of(node)}
    found: dict[int, list[fx.Node]] = {}
    for node in step.graph_module.graph.nodes:
        held = {by_storage[storage_key(t)] for t in tensors_of(node) if storage_key(t) in by_storage}
        for value in held if node not in step.home else {step.home[node]}:
            found.setdefault(value, []).append(node)
    return found


def virtual_and_their_views(step: StepGraph) -> set[fx.Node]:
    """What is made anew for every op that reads it."""
    storages = {storage_key(tensor) for node in step.virtual for tensor in tensors_of(node)}
    if not storages:
        return set()
    return {n for n in step.graph_module.graph.nodes if any(storage_key(t) in storages for t in tensors_of(n))}
