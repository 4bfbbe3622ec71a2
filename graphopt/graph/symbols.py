"""The symbols that sizes in a step graph are made of."""

from __future__ import annotations

from collections.abc import Iterator

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from graphopt.graph.step_graph import StepGraph


def free_symbols(step: StepGraph) -> set[sympy.Symbol]:
    """The symbols that shapes and bytes of a step graph's values are made of."""
    return {symbol for size in _sizes(step) for symbol in size.node.expr.free_symbols}


def shape_env(step: StepGraph) -> ShapeEnv:
    """What is known of the symbols of a graph that has some."""
    return next(_sizes(step)).node.shape_env  # type: ignore[no-any-return]


def _sizes(step: StepGraph) -> Iterator[torch.SymInt]:
    for value in step.values:
        if value.traced is not None:
            sizes = (*value.traced.shape, value.traced.untyped_storage().nbytes())
            yield from (size for size in sizes if isinstance(size, torch.SymInt))
