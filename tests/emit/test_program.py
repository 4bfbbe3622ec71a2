"""Graphs that run without Python between their operators: results, what is freed when, and errors, are Python's."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.graph import _BoxedCodeGen

import graphopt
from graphopt.device.measure import trace_allocations
from graphopt.emit import direct as directly
from graphopt.emit.direct import direct
from graphopt.emit.native import native_runner
from graphopt.emit.program import native
from tests.support.zoo import ZOO, differences, step

aten = torch.ops.aten
pytestmark = pytest.mark.skipif(native_runner() is None, reason="no C++ compiler")


def boxed(write: Callable[[fx.Graph], Any], root: Any = None) -> fx.GraphModule:
    graph = fx.Graph()
    graph.set_codegen(_BoxedCodeGen())
    graph.output(write(graph))
    return fx.GraphModule(root or {}, graph)


def call(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    return graph.call_function(target, args, kwargs)


def parts(graph: fx.Graph) -> Any:
    """Several results, one of them unread and one twice; a list; numbers, lists of tensors, none, and defaults."""
    x, y = graph.placeholder("x"), graph.placeholder("y")
    norm = call(graph, aten.native_layer_norm.default, x, [4], None, None, 1e-5)
    out, mean = (call(graph, operator.getitem, norm, i) for i in (0, 1))
    halves = call(graph, aten.split.Tensor, out, 2, -1)
    left, right = (call(graph, operator.getitem, halves, i) for i in (0, 1))
    both = call(graph, aten.cat.default, [right, left, right], -1)
    scaled = call(graph, aten.mul.Tensor, both, 0.5)
    picked = call(graph, aten.index.Tensor, scaled, [None, y])
    return (
        call(graph, aten.sum.dim_IntList, picked, [0], dtype=torch.float64),
        None,
        mean,
        call(graph, aten.t.default, x),
    )


def writes(graph: fx.Graph) -> Any:
    """An input is written, and read before and behind that; one is not there and not read; a constant is read."""
    x, _ = graph.placeholder("x"), graph.placeholder("unread")
    before = call(graph, aten.sin.default, x)
    call(graph, aten.add_.Tensor, x, graph.get_attr("one"), alpha=2)
    return (before, call(graph, aten.sin.default, x))


CASES = {
    "parts": (parts, lambda: [torch.randn(3, 4), torch.tensor([0, 5, 1])], {}),
    "writes": (writes, lambda: [torch.randn(3), None], {"one": torch.ones(3)}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_the_generated_code_does(case: str) -> None:
    write, inputs, root = CASES[case]
    module = boxed(write, root)
    run, given = native(module), inputs()
    assert run is not None
    mine, pythons = copy.deepcopy(given), copy.deepcopy(given)
    results, expected = run(mine), module(pythons)
    assert mine == [] and pythons == []
    assert all(
        a is b or (torch.equal(a, b) and a.stride() == b.stride()) for a, b in zip(results, expected, strict=True)
    )


@pytest.mark.parametrize("case", CASES)
def test_as_much_is_there_whenever_more_is_taken(case: str) -> None:
    write, inputs, root = CASES[case]
    module = boxed(write, root)
    run = native(module)
    assert run is not None

    def live_bytes(call: Callable[[list[Any]], Any]) -> list[int]:
        call(inputs())
        held: list[Any] = []
        sizes = [event.size_bytes for event in trace_allocations(lambda: held.append(call(inputs()))).events]
        return [live for live, size in zip(itertools.accumulate(sizes), sizes, strict=True) if size > 0]

    assert live_bytes(run) == live_bytes(direct_python(module))


def direct_python(module: fx.GraphModule) -> Callable[[list[Any]], Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directly, "native", lambda _module: None)
        return direct(module)


def test_an_error_is_the_operators_own_and_says_where() -> None:
    module = boxed(lambda graph: (call(graph, aten.embedding.default, *(graph.placeholder(n) for n in "wi")),))
    run = native(module)
    assert run is not None
    with pytest.raises(IndexError, match="index out of range") as failed:
        run([torch.randn(2, 3), torch.tensor([5])])
    assert "embedding" in "".join(getattr(failed.value, "__notes__", ["embedding"]))
    assert torch.equal(run([torch.eye(2), torch.tensor([1])])[0], torch.tensor([[0.0, 1.0]]))


def test_tensors_of_a_class_of_their_own_go_through_python() -> None:
    seen = []

    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    module = boxed(lambda graph: (call(graph, aten.sin.default, graph.placeholder("x")),))
    (result,) = direct(module)([torch.ones(2).as_subclass(Own)])
    assert seen and torch.equal(result.as_subclass(torch.Tensor), torch.ones(2).sin())


def test_a_number_in_the_place_of_a_tensor_goes_through_python() -> None:
    """As the first of several micro-batches is given for what those before it found."""
    module = boxed(lambda graph: (call(graph, aten.add.Tensor, graph.placeholder("x"), graph.placeholder("y")),))
    run, given = native(module), [torch.ones(2), 0.5]
    assert run is not None and run(given) is NotImplemented and len(given) == 2
    assert torch.equal(direct(module)(given)[0], torch.full((2,), 1.5))


def test_what_is_no_operator_stays_python() -> None:
    def write(graph: fx.Graph) -> Any:
        return (call(graph, torch.sin, graph.placeholder("x")),)

    assert native(boxed(write)) is None
    assert torch.equal(direct(boxed(write))([torch.ones(2)])[0], torch.ones(2).sin())


@pytest.mark.fast(1)
@pytest.mark.parametrize("name", ["gpt2", "resnet50", "mixture_of_experts", "in_place"])
def test_a_model_runs_so_inside_of_its_minimum(name: str) -> None:
    """With dropout that is drawn again too: the generator's state is handed over by a function that is no operator."""
    eager, case = step(ZOO[name]()), ZOO[name]()
    given = {"example_inputs": case.args, "example_kwargs": case.kwargs}
    graphopt.optimize(case.model, "8GiB", **given)
    minimum_bytes = case.model.graphopt.plan.minimum_bytes  # type: ignore[union-attr, attr-defined]
    case.model.graphopt.restore()  # type: ignore[union-attr, operator]
    graphopt.optimize(case.model, minimum_bytes, **given)
    assert differences(eager, step(case)) == {}
    runnables = case.model.graphopt.session.runnables  # type: ignore[union-attr, attr-defined]
    assert runnables and all(native(each.module) is not None for each in runnables)
    (history,) = case.model.graphopt.history  # type: ignore[union-attr, misc]
    assert history.measured_bytes <= minimum_bytes


def test_programs_go_with_what_they_were_made_for() -> None:
    """A program that is dropped while its results live leaves them whole."""
    results = native(boxed(lambda graph: (call(graph, aten.sin.default, graph.placeholder("x")),)))([torch.ones(3)])  # type: ignore[misc]
    assert torch.equal(results[0], torch.ones(3).sin())
    assert isinstance(nn.Parameter(results[0]), nn.Parameter)
