"""`torch.compile(model, backend="graphopt")`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from graphopt.base.errors import BudgetError, BudgetParseError, CaptureError, UsageError
from graphopt.base.units import format_bytes, parse_bytes
from graphopt.capture.aot import CaptureRequest, CompiledGraph, break_reason, compile_graph
from graphopt.capture.captures import warn_of_limit
from graphopt.capture.changing_sizes import fix_sizes
from graphopt.capture.tangents import loss_alone
from graphopt.device.snapshot import generators_kept
from graphopt.device.storages import tensors_in
from graphopt.graph.captured_graph import CapturedGraph, Decision
from graphopt.lower.compiler import MOST_ROUNDS
from graphopt.plan.choice import Choice
from graphopt.plan.graph_study import studied
from graphopt.plan.offload.where import offload_to
from graphopt.plan.pipeline import plan_as
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.plan.resident import device_total_bytes, resident_of_graph
from graphopt.plan.room import Room
from graphopt.run.calls.make_plans import making_best

#: The budget where no option names one: most tools that take a backend's name take none of its options.
BUDGET_VARIABLE = "GRAPHOPT_MEM_BUDGET"
_OPTIONS = ("mem_budget", "planner", "cost_model", "reserve", "plan_seconds", "compiler", "numerics", "offload")


@generators_kept()
def graphopt_backend(
    module: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """`torch.compile(model, backend="graphopt", options={"mem_budget": "8GiB"})`.

    Options: `mem_budget` (needed, but for the environment variable GRAPHOPT_MEM_BUDGET), `planner`, `cost_model`,
    `reserve`, `plan_seconds`, `compiler`, `numerics`, `offload`. What is resident is read from the graph's inputs.
    Raises UsageError for options that are unknown or missing, CaptureError where the model breaks into several graphs
    (`graphopt.optimize` divides a budget over them), BudgetError where it does not fit. torch.compile wraps each in
    its own BackendCompilerFailed.
    """
    device = next(t.device for t in tensors_in(example_inputs))
    given = _checked(options or {}, device)
    if break_reason(module):
        raise CaptureError(
            f"the model breaks into several graphs ({break_reason(module)}); use graphopt.optimize(model, "
            "mem_budget=...), which divides the budget over them, or remove the break"
        )
    warn_of_limit()
    fix_sizes(module)
    choice = Choice(
        given.get("planner", "auto"),
        given.get("cost_model", "auto"),
        plan_seconds=given.get("plan_seconds", 0.0),
        compiler=given.get("compiler", "eager"),
        numerics=given.get("numerics", "bitwise"),
        offload=offload_to(given.get("offload"), device),
    )
    return _compiled(module, example_inputs, given, choice).call


def _checked(options: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The options, with the environment's budget where none is among them; raises UsageError."""
    unknown = sorted(set(options) - set(_OPTIONS))
    named = os.environ.get(BUDGET_VARIABLE)
    if unknown or ("mem_budget" not in options and not named):
        wrong = f"unknown option {unknown[0]!r}" if unknown else "the option 'mem_budget' is missing"
        raise UsageError(
            f'torch.compile(backend="graphopt"): {wrong}; options are {", ".join(_OPTIONS)}, and where nothing can '
            f"give one the environment variable {BUDGET_VARIABLE} names the budget"
        )
    if "mem_budget" in options:
        return dict(options)
    try:
        return {**options, "mem_budget": parse_bytes(named or "", device_total_bytes(device))}
    except BudgetParseError as error:
        raise BudgetParseError(f"the environment variable {BUDGET_VARIABLE}: {error}") from None


def _compiled(module: fx.GraphModule, inputs: Sequence[Any], given: Mapping[str, Any], choice: Choice) -> CompiledGraph:
    """The graph, planned; planned again where its compiled kernels take more than the budget leaves."""
    planned: list[PlannedGraph] = []
    room_bytes, beside_bytes = 0, 0

    def decide(captured: CapturedGraph) -> Decision:
        nonlocal room_bytes
        total = device_total_bytes(captured.step.device)
        resident = resident_of_graph(captured.step)
        if given.get("reserve"):
            resident["reserve"] = parse_bytes(given["reserve"], total)
        budget_bytes = parse_bytes(given["mem_budget"], total)
        room_bytes = budget_bytes - sum(resident.values())
        study = studied(captured, choice)
        try:
            planned.extend(making_best(study, choice)(Room(budget_bytes - beside_bytes, resident)))
        except BudgetError:
            if choice.compiler == "eager":
                raise
            planned.append(plan_as(study, study.curve[0].schedule, choice))  # what it takes is measured
        return planned[-1].decision

    while True:
        request = CaptureRequest(
            module, inputs, choice.cost_model, tangents=lambda step: loss_alone(step.joint), compiler=choice.compiler
        )
        compiled = compile_graph(request, decide)
        peak_bytes = compiled.lowered.peak_bytes if compiled.lowered is not None else None
        if peak_bytes is None or peak_bytes <= room_bytes:
            return compiled
        if planned[-1].peak_bytes <= planned[-1].study.minimum_bytes or len(planned) >= MOST_ROUNDS:
            raise BudgetError(
                f"mem_budget: the kernels that Inductor makes of this graph take {format_bytes(peak_bytes)} where "
                f"{format_bytes(max(room_bytes, 0))} are left for them, at the smallest plan that was compiled; "
                "options={'compiler': 'eager'} runs eager's kernels, whose peak is as planned",
                peak_bytes,
            )
        beside_bytes = peak_bytes - planned[-1].peak_bytes
