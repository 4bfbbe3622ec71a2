"""Session: what `optimize()` puts in front of a model's forward.

A training call goes through torch.compile with our backend. A model that is captured whole is
planned right there. One that breaks into several graphs is first run once without gradients, only
to meet all of its graphs; then the budget is divided, and the call starts anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit

from graphopt.backend import Captured, break_reason, compile_graph
from graphopt.errors import CaptureError, GraphoptError, InfeasibleError
from graphopt.infeasible import budget_error
from graphopt.pipeline import plan_graph, plan_within
from graphopt.planned import CapturedGraph, Choice, PlannedGraph
from graphopt.resident import resident_of_model
from graphopt.shares import share_budget
from graphopt.state import restore, snapshot

Compiled = Callable[..., Any]

# Every set of shapes is a plan of its own; torch's limit of 8 would send the ninth to eager.
_PLANS_PER_MODEL = 256


@dataclass(frozen=True)
class Request:
    """What the user asked for, in bytes."""

    budget_bytes: int
    choice: Choice
    reserve_bytes: int = 0
    optimizer_bytes: int = 0


class _MeetGraphs(Exception):
    """A graph was reached that cannot be planned before the others are known."""


class _OnlyPlan(Exception):
    """The graph is planned, and running it was not asked for."""


@dataclass
class _Slot:
    """One of Dynamo's graphs: first met, then planned and compiled."""

    session: Session
    module: fx.GraphModule
    example_inputs: Sequence[Any]
    tracing: Any
    name: str
    compiled: Compiled | None = None

    def __call__(self, *args: Any) -> Any:
        if self.session.meeting:
            return _run_without_gradients(self.module, args)
        if self.compiled is None:
            raise _MeetGraphs
        if self.session.only_plan:
            raise _OnlyPlan
        return self.compiled(*args)

    def compile(self, decide: Callable[[CapturedGraph], PlannedGraph]) -> None:
        with torch._guards.tracing(self.tracing):
            self.compiled = compile_graph(
                self.module, self.example_inputs, self.session.request.choice, decide, self.name
            )

    def capture(self) -> CapturedGraph | None:
        """The joint graph, not yet planned; None where the graph needs no gradient."""

        def stop(captured: CapturedGraph) -> PlannedGraph:
            raise Captured(captured)

        try:
            self.compile(stop)
        except Captured as done:
            return done.graph
        return None


class Session:
    """The planned graphs of one model, and the call that runs them."""

    def __init__(self, model: nn.Module, request: Request) -> None:
        self.model = model
        self.request = request
        self.slots: list[_Slot] = []
        self.pending: list[_Slot] = []
        self.planned: list[PlannedGraph] = []
        self.resident_bytes: Mapping[str, int] = {}
        self.plan_seconds = 0.0
        self.meeting = False
        self.only_plan = False
        self._inputs: object = ()
        self._compiled = torch.compile(model._call_impl, backend=self._backend, dynamic=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model: planned where a training step needs it, as it was everywhere else."""
        if not (self.model.training and torch.is_grad_enabled()):
            return self.model._call_impl(*args, **kwargs)
        return self._call(args, kwargs)

    def plan(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Capture and plan for these inputs; nothing of the model is run that it could notice."""
        training = self.model.training
        self.only_plan = True
        try:
            self.model.train()
            with torch.enable_grad():
                self._call(args, dict(kwargs))
        except _OnlyPlan:
            pass
        finally:
            self.only_plan = False
            self.model.train(training)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._inputs = (args, kwargs)
        try:
            try:
                result = self._run(args, kwargs)
            except _MeetGraphs:
                self._meet_graphs(args, kwargs)
                result = self._run(args, kwargs)
        finally:
            self._inputs = ()
        if not self.slots:
            raise CaptureError(
                f"nothing of {type(self.model).__name__} could be captured: torch.compile skipped its forward; "
                "TORCH_LOGS=graph_breaks shows why"
            )
        return result

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with _dynamo_errors():
            return self._compiled(*args, **kwargs)

    def _backend(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        """torch.compile's backend: plan the graph now if it is the whole model, else wait for the others."""
        name = "model" if not (self.slots or break_reason(module)) else f"graph {len(self.slots) + 1}"
        slot = _Slot(self, module, example_inputs, torch._guards.TracingContext.get(), name)
        self.slots.append(slot)
        if self.meeting or self.pending or break_reason(module):
            self.pending.append(slot)
        else:
            slot.name = "model"
            slot.compile(self._plan_alone)
        return slot

    def _plan_alone(self, captured: CapturedGraph) -> PlannedGraph:
        started = time.perf_counter()
        self.resident_bytes = self._resident(captured.step.device)
        planned = plan_within(captured, self.request.budget_bytes, self.resident_bytes, self.request.choice)
        self.planned = [planned]
        self.plan_seconds = time.perf_counter() - started
        return planned

    def _meet_graphs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the model once without gradients to collect its graphs, then plan all of them."""
        before = snapshot(self.model)
        self.meeting = True
        try:
            self._run(args, kwargs)
        finally:
            self.meeting = False
            restore(self.model, before)
        pending, self.pending = self.pending, []
        with _graphopt_errors():
            self._plan_together(pending)

    def _plan_together(self, slots: Sequence[_Slot]) -> None:
        captured = {slot.name: graph for slot in slots if (graph := slot.capture()) is not None}
        graphs = list(captured.values())
        if not graphs:
            return
        started = time.perf_counter()
        choice = self.request.choice
        self.resident_bytes = self._resident(graphs[0].step.device)
        own_bytes = self.request.budget_bytes - sum(self.resident_bytes.values())
        try:
            shares = dict(zip(captured, share_budget(graphs, own_bytes), strict=True))
        except InfeasibleError as error:
            raise budget_error(
                graphs, error.minimum_bytes, self.request.budget_bytes, self.resident_bytes, choice.planner
            ) from None
        self.planned = [plan_graph(graph, shares[name], choice) for name, graph in captured.items()]
        self.plan_seconds = time.perf_counter() - started
        ready = {graph.captured.name: graph for graph in self.planned}
        for slot in slots:
            if slot.name in captured:
                slot.compile(lambda graph: ready[graph.name])

    def _resident(self, device: torch.device) -> dict[str, int]:
        kinds = resident_of_model(self.model, self._inputs, device)
        kinds["optimizer"] = self.request.optimizer_bytes
        kinds["reserve"] = self.request.reserve_bytes
        return kinds


def _run_without_gradients(module: fx.GraphModule, args: Sequence[Any]) -> Any:
    """Run one of Dynamo's graphs; its outputs say that they need gradients where they would."""
    with torch.no_grad():
        results = module(*args)
    (returned,) = module.graph.output_node().args
    marked = []
    for node, result in zip(returned, results, strict=True):  # type: ignore[arg-type]
        example = node.meta.get("example_value") if isinstance(node, fx.Node) else None
        needs = isinstance(example, torch.Tensor) and example.requires_grad
        marked.append(result.detach().requires_grad_() if needs and isinstance(result, torch.Tensor) else result)
    return tuple(marked)


@contextmanager
def _dynamo_errors() -> Iterator[None]:
    """torch.compile without its silent ways back to eager, and with our errors as they are."""
    limits = {
        "recompile_limit": _PLANS_PER_MODEL,
        "accumulated_recompile_limit": _PLANS_PER_MODEL,
        "fail_on_recompile_limit_hit": True,
        "suppress_errors": False,
    }
    with torch._dynamo.config.patch(limits), _graphopt_errors():
        yield


@contextmanager
def _graphopt_errors() -> Iterator[None]:
    try:
        yield
    except BackendCompilerFailed as error:
        inner = error.inner_exception
        if isinstance(inner, GraphoptError):
            raise inner from None
        raise CaptureError(f"the captured graph could not be compiled: {type(inner).__name__}: {inner}") from error
    except FailOnRecompileLimitHit as error:
        raise CaptureError(f"the model was captured {_PLANS_PER_MODEL} times, for as many shapes: {error}") from error
