"""Sizes of inputs: constants of the first capture, symbols from the second on, so that one graph serves all shapes.

Dynamo has it so itself (`automatic_dynamic_shapes`), dimension by dimension as each is seen to change. Here a capture
that a size made necessary takes the first dimension of every input for one that changes too: batches end in a short
one, and a graph for each dimension that changes first would be one capture more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import sympy
import torch
from torch import fx
from torch._dynamo.source import TensorPropertySource, is_from_local_source
from torch._dynamo.variables import builder
from torch.fx.experimental.symbolic_shapes import DimDynamic, StatefulSymbolicContext

from graphopt.base.errors import CaptureError, UsageError
from graphopt.capture.captures import cause_of_capture
from graphopt.device.storages import tensors_in
from graphopt.graph.nodes import source_line
from graphopt.graph.numbers import is_symbol, plain, sizes_of
from graphopt.graph.step_graph import StepGraph
from graphopt.graph.symbols import free_symbols, shape_env

logger = logging.getLogger("graphopt")


@dataclass(eq=False)
class Sizes:
    """Which sizes of inputs one model's captures take for symbols.

    `follow`: those that changed; otherwise none ever. `from_start`: all, at the first capture already. `names` are the
    dimensions that the user named, by position: those alone then. `obstacle` says why all are constants in spite of it.
    """

    follow: bool = True
    from_start: bool = False
    names: dict[int, str] = field(default_factory=dict)
    obstacle: str = ""

    @property
    def are_constant(self) -> bool:
        """Whether every capture is for one set of shapes."""
        return not self.follow or bool(self.obstacle)

    def cannot_change(self, why: str) -> None:
        """From now on every capture is for one set of shapes; said once."""
        if not self.obstacle:
            self.obstacle = why.splitlines()[0]
            logger.info("each shape is captured by itself, as sizes cannot be symbols: %s", self.obstacle)


#: Which sizes change: None for those that are seen to, True for all, False for none, or the dimension of each name, in
#: every input that has it.
Dynamic = Mapping[str, int] | bool | None


def declared_sizes(dynamic: Dynamic) -> Sizes:
    """What the user said of sizes; raises UsageError where it cannot be."""
    if dynamic is None or isinstance(dynamic, bool):
        return Sizes(follow=dynamic is not False, from_start=dynamic is True)
    if not isinstance(dynamic, Mapping) or not dynamic:
        raise UsageError(f"dynamic: expected a dimension for each name, as in {{'batch': 0}}, got {dynamic!r}")
    for name, dimension in dynamic.items():
        if not (isinstance(name, str) and name.isidentifier()):
            raise UsageError(f"dynamic: {name!r} cannot be the name of a size")
        if isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 0:
            raise UsageError(f"dynamic: {name!r} needs the number of a dimension, 0 or more, not {dimension!r}")
    names = {dimension: name for name, dimension in dynamic.items()}
    if len(names) < len(dynamic):
        raise UsageError(f"dynamic: two names for one dimension in {dict(dynamic)}")
    return Sizes(from_start=True, names=names)


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
        found[symbol] = next((sizes.names[s.idx] for s in sources if s.idx in sizes.names), str(symbol))
    for name in sizes.names.values():
        alike = {int(env.backed_var_to_val[symbol]) for symbol in found if found[symbol] == name} if env else set()
        if len(alike) > 1:
            many = " and ".join(map(str, sorted(alike)))
            raise UsageError(
                f"dynamic: {name!r} is {many} in different inputs: name those of a dimension that is alike"
            )
        if not alike:
            why = sizes.obstacle or "the model's code fixes it, no input has that dimension, or it is 1 in the example"
            raise CaptureError(f"{name!r} is a constant of what was captured: {why}")
    order = list(sizes.names.values())
    return dict(sorted(found.items(), key=lambda item: order.index(item[1]) if item[1] in order else len(order)))


#: Every capture is for one set of shapes.
CONSTANT = Sizes(follow=False)


@contextmanager
def changing_sizes(sizes: Sizes) -> Iterator[None]:
    """Let Dynamo take those sizes for symbols that `sizes` says."""
    before = builder._automatic_dynamic

    def follow(tensor: Any, tx: Any, source: Any, static_shapes: bool, *rest: Any, **named: Any) -> Any:
        static = static_shapes or sizes.are_constant
        context = before(tensor, tx, source, static, *rest, **named)
        if static or not is_from_local_source(source, only_allow_input=True):
            return context
        return _with_changing(context, tensor, sizes) if _is_wanted(sizes) else context

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(builder, "_automatic_dynamic", follow))
        # equal numbers need not stay equal: a batch of 16 with 16 tokens
        stack.enter_context(mock.patch.object(torch.fx.experimental._config, "use_duck_shape", False))
        yield


def _is_wanted(sizes: Sizes) -> bool:
    return sizes.from_start or "size mismatch" in cause_of_capture()


def _with_changing(context: Any, tensor: torch.Tensor, sizes: Sizes) -> Any:
    if not isinstance(context, StatefulSymbolicContext):
        return context
    dynamic = list(context.dynamic_sizes)
    wanted = sizes.names or (range(tensor.dim()) if sizes.from_start else (0,))
    for dimension in wanted:
        if dimension < len(dynamic) and tensor.shape[dimension] > 1:
            dynamic[dimension] = DimDynamic.DYNAMIC
    return replace(context, dynamic_sizes=dynamic)


def fix_sizes(module: fx.GraphModule, sizes: Sizes = CONSTANT) -> None:
    """Make the sizes in one of Dynamo's graphs constants, guarded, but those that may be symbols.

    To be called while Dynamo compiles the graph, as guards that come later are not looked at.
    Raises CaptureError for a nested tensor, whose sizes are none.
    """
    for node in module.graph.nodes:
        for tensor in tensors_in(node.meta.get("example_value")):
            if tensor.is_nested:
                where = f" at {found}" if (found := source_line(node)) else ""
                raise CaptureError(
                    f"a nested tensor is made{where}, whose steps cannot be captured and planned: pad it, or make it "
                    "in a function that is not captured (@torch.compiler.disable)"
                )
            for size in sizes_of(tensor):
                if sizes.are_constant or (is_symbol(size) and not _is_of_tensors(size)):
                    plain(size)


def symbols_of_sizes(module: fx.GraphModule) -> dict[sympy.Symbol, int]:
    """The symbols that sizes in one of Dynamo's graphs are made of, with the positions of the inputs that hold them."""
    found: dict[sympy.Symbol, int] = {}
    for position, node in enumerate(module.graph.find_nodes(op="placeholder")):
        example = node.meta.get("example_value")
        if isinstance(example, torch.SymInt) and is_symbol(example) and _is_of_tensors(example):
            expression = example.node.expr
            if isinstance(expression, sympy.Symbol):
                found.setdefault(expression, position)
    return found


def _is_of_tensors(size: torch.SymInt) -> bool:
    """Whether a size follows from those of the inputs, and neither from data nor from a number that may change."""
    sources = size.node.shape_env.var_to_sources
    symbols = size.node.expr.free_symbols
    return all(any(isinstance(s, TensorPropertySource) for s in sources.get(symbol, ())) for symbol in symbols)
