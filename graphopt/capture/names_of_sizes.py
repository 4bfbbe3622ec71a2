"""What the user calls the sizes that a captured graph's symbols stand for."""

from __future__ import annotations

import sympy
from torch._dynamo.source import TensorPropertySource

from graphopt.base.errors import CaptureError, UsageError
from graphopt.capture.changing_sizes import Sizes, size_name
from graphopt.graph.step_graph import StepGraph
from graphopt.graph.symbols import free_symbols, shape_env


def name_of(sizes: Sizes, of_input: str, dimension: int) -> str:
    """What the user calls a size of an input, which is given as by `size_name`; "" where it has no name."""
    return sizes.by_input.get(of_input) or sizes.names.get(dimension, "")


def names_of_symbols(step: StepGraph, sizes: Sizes) -> dict[sympy.Symbol, str]:
    """What the symbols of a captured graph are called, by the dimensions that they were taken from.

    Raises CaptureError where a named size is a constant of the capture, UsageError where one name stands for two sizes.
    """
    used = free_symbols(step)
    env = shape_env(step) if used else None
    found: dict[sympy.Symbol, str] = {}
    for symbol in sorted(used, key=str):
        assert env is not None
        sources = [source for source in env.var_to_sources[symbol] if isinstance(source, TensorPropertySource)]
        known = (name_of(sizes, size_name(s.base, s.idx), s.idx) for s in sources if s.idx is not None)
        found[symbol] = next((name for name in known if name), str(symbol))
    order = list(dict.fromkeys((*sizes.names.values(), *sizes.by_input.values())))
    for name in order:
        alike = {int(env.backed_var_to_val[symbol]) for symbol in found if found[symbol] == name} if env else set()
        if len(alike) > 1:
            many = " and ".join(map(str, sorted(alike)))
            raise UsageError(
                f"dynamic: {name!r} is {many} in different inputs: name those of a dimension that is alike"
            )
        if not alike:
            why = sizes.obstacle or "the model's code fixes it, no input has that dimension, or it is 1 in the example"
            raise CaptureError(f"{name!r} is a constant of what was captured: {why}")
    return dict(sorted(found.items(), key=lambda item: order.index(item[1]) if item[1] in order else len(order)))
