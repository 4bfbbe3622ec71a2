"""The seam to torch.compile: Dynamo's graphs go through AOTAutograd, whose partitioner is our planner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd import collect_metadata_analysis
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from graphopt.base.errors import CaptureError, UsageError
from graphopt.base.units import parse_bytes
from graphopt.capture.capture_graph import HandOver, capture_graph
from graphopt.passes.joint.own_gradients import own_gradients
from graphopt.passes.joint.specialize import plain
from graphopt.plan.captured import CapturedGraph, Choice, PlannedGraph
from graphopt.plan.pipeline import plan_within
from graphopt.plan.resident import device_total_bytes, resident_of_graph

Compiled = Callable[..., Any]
#: Runs emitted graphs in place of their own code while it holds one: how verification looks inside.
runner: list[Callable[[fx.GraphModule, list[Any]], Any]] = []

_OPTIONS = ("mem_budget", "planner", "cost_model", "reserve", "plan_seconds")


class Captured(Exception):
    """Raised through AOTAutograd to end a compilation that was only meant to capture."""

    def __init__(self, graph: CapturedGraph) -> None:
        super().__init__(graph.name)
        self.graph = graph


def compile_graph(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    choice: Choice,
    decide: Callable[[CapturedGraph], PlannedGraph],
    name: str = "model",
    hand_over: HandOver = own_gradients,
) -> Compiled:
    """Compile one of Dynamo's graphs; `decide` plans its captured joint graph (or raises Captured).

    A graph that needs no gradient is run as it is. `hand_over` is as in `capture_graph`.
    """
    for size in _sizes(example_inputs):
        plain(size)
    reason = break_reason(module)

    def partition(joint: fx.GraphModule, _inputs: object, *, num_fwd_outputs: int, **known: Any) -> tuple[Any, Any]:
        static = list(known.get("static_lifetime_input_indices") or ())
        planned = decide(capture_graph(joint, num_fwd_outputs, static, choice, name, reason, hand_over))
        return planned.emitted.forward, planned.emitted.backward

    compiler = aot_autograd(
        fw_compiler=_run_boxed,
        bw_compiler=_run_boxed,
        inference_compiler=_run_boxed_inference,
        partition_fn=partition,
        keep_inference_input_mutations=True,
    )
    with _dense_tangents():
        compiled: Compiled = compiler(module, example_inputs)
    return compiled


@contextmanager
def _dense_tangents() -> Iterator[None]:
    """Let AOTAutograd expect tangents as operators make them: each dense, in memory of its own.

    It expects the strides of the outputs. Of outputs that are views into a larger tensor (`chunk`) it would copy every
    tangent, with the gaps between its rows, while all of the originals are still there; and it takes tangents of two
    views of one tensor for views of one tangent.
    """
    before = collect_metadata_analysis.coerce_tangent_and_suggest_memory_format

    def expected(tangent: Any) -> Any:
        plain = isinstance(tangent, torch.Tensor) and not is_traceable_wrapper_subclass(tangent)
        # preserve_format: the strides of a dense output stay, of others their order
        return before(torch.empty_like(tangent) if plain and tangent.layout == torch.strided else tangent)

    with mock.patch.object(collect_metadata_analysis, before.__name__, expected):
        yield


def graphopt_backend(
    module: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Compiled:
    """`torch.compile(model, backend="graphopt", options={"mem_budget": "8GiB"})`.

    Options: `mem_budget` (needed), `planner`, `cost_model`, `reserve`, `plan_seconds`. What is resident
    is read from the graph's inputs. Raises UsageError for options that are unknown or missing, CaptureError where
    the model breaks into several graphs (`graphopt.optimize` divides a budget over them), BudgetError
    where it does not fit. torch.compile wraps each in its own BackendCompilerFailed.
    """
    given = dict(options or {})
    unknown = sorted(set(given) - set(_OPTIONS))
    if unknown or "mem_budget" not in given:
        wrong = f"unknown option {unknown[0]!r}" if unknown else "the option 'mem_budget' is missing"
        raise UsageError(f'torch.compile(backend="graphopt"): {wrong}; options are {", ".join(_OPTIONS)}')
    if break_reason(module):
        raise CaptureError(
            f"the model breaks into several graphs ({break_reason(module)}); use graphopt.optimize(model, "
            "mem_budget=...), which divides the budget over them, or remove the break"
        )
    choice = Choice(
        given.get("planner", "auto"), given.get("cost_model", "auto"), plan_seconds=given.get("plan_seconds", 0.0)
    )

    def decide(captured: CapturedGraph) -> PlannedGraph:
        total = device_total_bytes(captured.step.device)
        budget_bytes = parse_bytes(given["mem_budget"], total)
        resident = resident_of_graph(captured.step)
        if given.get("reserve"):
            resident["reserve"] = parse_bytes(given["reserve"], total)
        return plan_within(captured, budget_bytes, resident, choice)

    return compile_graph(module, example_inputs, choice, decide)


def break_reason(module: fx.GraphModule) -> str:
    """Why and where Dynamo ended this graph; "" where it is the end of the model."""
    reason = getattr(module, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return ""
    frame = reason.user_stack[-1] if reason.user_stack else None
    where = f" at {frame.filename}:{frame.lineno} in {frame.name}" if frame else ""
    return f"{str(reason.reason).splitlines()[0]}{where}"


def _sizes(example_inputs: Sequence[Any]) -> list[Any]:
    sizes: list[Any] = []
    for item in example_inputs:
        if isinstance(item, torch.Tensor):
            sizes += [*item.shape, *(item.stride() if item.layout == torch.strided else ()), item.storage_offset()]
        else:
            sizes.append(item)
    return sizes


def _run_boxed(module: fx.GraphModule, _inputs: object) -> Compiled:
    def run(args: list[Any]) -> Any:
        return runner[-1](module, args) if runner else module.forward(args)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def _run_boxed_inference(module: fx.GraphModule, inputs: object) -> Compiled:
    module.graph.set_codegen(fx.graph._BoxedCodeGen())
    module.recompile()
    return _run_boxed(module, inputs)
