"""Graphs that call their operators directly: the same results, code that can be read, and no name that is taken."""

from __future__ import annotations

import traceback

import pytest
import torch
from torch import fx

from graphopt.emit.direct import direct


def doubled() -> fx.GraphModule:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.ops.aten.mul.Tensor, (x, 2)))
    return fx.GraphModule({}, graph)


def nested() -> fx.GraphModule:
    """A graph with another one in it, whose values have the names that are called."""
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    inner = graph.create_node("call_module", "inner", (x,), {}, "inner")
    both = graph.create_node("call_function", torch.ops.aten.mm.default, (inner, y), {}, "aten_mm_default")
    again = graph.create_node("call_module", "inner", (both,), {}, "mm")
    graph.output(graph.call_function(torch.sin, (again,)))
    return fx.GraphModule({"inner": doubled()}, graph)


def test_it_computes_what_the_module_does() -> None:
    module, x, y = nested(), torch.randn(3, 3), torch.randn(3, 3)
    assert torch.equal(direct(module)(x, y), module(x, y))


def test_no_operator_is_looked_up_where_it_is_called() -> None:
    """Where this fails, fx writes calls otherwise than it did: they are still right, but slow."""
    code = direct(nested()).__func__.__code__  # type: ignore[attr-defined]
    assert "ops" not in code.co_names and {"call_aten_mm_default", "call_inner"} <= set(code.co_names)


def test_a_failure_shows_the_line_that_failed() -> None:
    with pytest.raises(RuntimeError) as failed:
        direct(nested())(torch.randn(2, 3), torch.randn(2, 3))
    assert "call_aten_mm_default(inner, y)" in "".join(traceback.format_tb(failed.value.__traceback__))
