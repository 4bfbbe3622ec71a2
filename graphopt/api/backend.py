"""`torch.compile(model, backend="graphopt")`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from graphopt.base.errors import CaptureError, UsageError
from graphopt.base.units import parse_bytes
from graphopt.capture.aot import CaptureRequest, break_reason, compile_graph
from graphopt.capture.captures import warn_of_limit
from graphopt.capture.numbers import fix_sizes
from graphopt.capture.tangents import loss_alone
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.graph.step_graph import StepGraph
from graphopt.plan.choice import Choice
from graphopt.plan.graph_study import studied
from graphopt.plan.pipeline import plan_within
from graphopt.plan.resident import device_total_bytes, resident_of_graph
from graphopt.problem.schedule import Schedule

_OPTIONS = ("mem_budget", "planner", "cost_model", "reserve", "plan_seconds")


def graphopt_backend(
    module: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
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
    warn_of_limit()
    fix_sizes(module)
    choice = Choice(
        given.get("planner", "auto"), given.get("cost_model", "auto"), plan_seconds=given.get("plan_seconds", 0.0)
    )

    def decide(captured: CapturedGraph) -> Schedule:
        total = device_total_bytes(captured.step.device)
        budget_bytes = parse_bytes(given["mem_budget"], total)
        resident = resident_of_graph(captured.step)
        if given.get("reserve"):
            resident["reserve"] = parse_bytes(given["reserve"], total)
        return plan_within(studied(captured, choice), budget_bytes, resident, choice).schedule

    def tangents(step: StepGraph) -> frozenset[int]:
        return loss_alone(step.joint)

    return compile_graph(CaptureRequest(module, example_inputs, choice.cost_model, tangents=tangents), decide).call
