"""Session: what `optimize()` puts in front of a model's forward.

A training call goes through torch.compile with our backend. A model that is captured whole is
planned right there. One that breaks into several graphs is first run once without gradients, only
to meet all of its graphs; then the budget is divided, and the call starts anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from graphopt.backend import Captured, break_reason, compile_graph
from graphopt.cost_models.model_state import optimizer_bytes
from graphopt.dynamo import dynamo_errors, graphopt_errors, own_frame
from graphopt.errors import CaptureError, InfeasibleError
from graphopt.infeasible import budget_error
from graphopt.pipeline import plan_graph, plan_within
from graphopt.planned import CapturedGraph, Choice, PlannedGraph
from graphopt.resident import other_bytes, resident_of_model
from graphopt.shares import share_budget
from graphopt.state import State, restore, snapshot, training_mode

Compiled = Callable[..., Any]


@dataclass(frozen=True)
class Request:
    """What the user asked for, in bytes."""

    budget_bytes: int
    choice: Choice
    reserve_bytes: int = 0
    optimizer: torch.optim.Optimizer | None = None

    @property
    def optimizer_bytes(self) -> int:
        """What the optimizer's state takes: real where it has stepped, else predicted."""
        return optimizer_bytes(self.optimizer) if self.optimizer is not None else 0


class _MeetGraphs(Exception):
    """A graph was reached that cannot be planned before the others are known."""


class _OnlyPlan(Exception):
    """The graph is planned, and running it was not asked for."""


@dataclass(eq=False)
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
            self.session.met.append(self)
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
        self.met: list[_Slot] = []
        self.planned: list[PlannedGraph] = []
        self.resident_bytes: Mapping[str, int] = {}
        self.plan_seconds = 0.0
        self.meeting = False
        self.only_plan = False
        self._inputs: object = ()
        self._known_calls: set[object] = set()
        self._planned_alone: _Slot | None = None
        self._compiled = torch.compile(own_frame(model._call_impl), backend=self._backend, dynamic=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model: planned where a training step needs it, as it was everywhere else."""
        if not (self.model.training and torch.is_grad_enabled()):
            return self.model._call_impl(*args, **kwargs)
        return self._call(args, kwargs)

    def plan(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Capture and plan for these inputs; nothing of the model is run that it could notice."""
        self.only_plan = True
        try:
            with training_mode(self.model), torch.enable_grad():
                self._call(args, dict(kwargs))
        except _OnlyPlan:
            pass
        finally:
            self.only_plan = False

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = _signature(args, kwargs)
        before = None if call in self._known_calls else snapshot(self.model)
        self._inputs, self._planned_alone = (args, kwargs), None
        try:
            try:
                result = self._run(args, kwargs)
            except _MeetGraphs:
                if before is None:
                    raise CaptureError(
                        "a model that breaks into several graphs was captured anew in the middle of a call with inputs "
                        "like earlier ones: something else that it reads has changed; call optimize() again"
                    ) from None
                self._meet_graphs(args, kwargs, before)
                result = self._run(args, kwargs)
        finally:
            self._inputs = ()
        self._known_calls.add(call)
        if not self.slots:
            raise CaptureError(
                f"nothing of {type(self.model).__name__} could be captured: torch.compile skipped its forward; "
                "TORCH_LOGS=graph_breaks shows why"
            )
        return result

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with dynamo_errors():
            return self._compiled(*args, **kwargs)

    def _backend(self, module: fx.GraphModule, _inputs: Sequence[Any]) -> Compiled:
        """torch.compile's backend: plan the graph now if it is the whole model, else wait for the others."""
        # the fake inputs: a slot outlives the batch, and must not hold it
        examples = [node.meta["example_value"] for node in module.graph.find_nodes(op="placeholder")]
        slot = _Slot(self, module, examples, torch._guards.TracingContext.get(), "model")
        self.slots.append(slot)
        # a second graph in one call means that the first was not the whole model either
        if not (self.meeting or self._planned_alone or break_reason(module)):
            slot.compile(self._plan_alone)
            self._planned_alone = slot
        return slot

    def _plan_alone(self, captured: CapturedGraph) -> PlannedGraph:
        started = time.perf_counter()
        self.resident_bytes = self._resident(captured.step.device)
        planned = plan_within(captured, self.request.budget_bytes, self.resident_bytes, self.request.choice)
        self.planned = [planned]
        self.plan_seconds = time.perf_counter() - started
        return planned

    def _meet_graphs(self, args: tuple[Any, ...], kwargs: dict[str, Any], before: State) -> None:
        """Run the model once without gradients to collect its graphs, then plan all of them."""
        restore(self.model, before)
        self.meeting, self.met = True, []
        try:
            self._run(args, kwargs)
        finally:
            self.meeting = False
            restore(self.model, before)
        with graphopt_errors():
            self._plan_together(self.met)

    def _plan_together(self, met: Sequence[_Slot]) -> None:
        """Divide the budget over the graphs of one call, in the order in which they ran; one may run twice."""
        slots = list(dict.fromkeys(met))
        for number, slot in enumerate(slots, start=1):
            slot.name = f"graph {number}"
        captured = {slot: graph for slot in slots if (graph := slot.capture()) is not None}
        sequence = [slot for slot in met if slot in captured]
        if not sequence:
            return
        started = time.perf_counter()
        shares = self._shares(sequence, captured)
        choice = self.request.choice
        choice = replace(choice, plan_seconds=choice.plan_seconds / len(captured))
        planned = {slot: plan_graph(captured[slot], shares[slot], choice) for slot in captured}
        self.planned = [planned[slot] for slot in sequence]
        self.plan_seconds = time.perf_counter() - started
        for slot in captured:
            slot.compile(lambda _again, slot=slot: planned[slot])  # type: ignore[misc]

    def _shares(self, sequence: Sequence[_Slot], captured: Mapping[_Slot, CapturedGraph]) -> dict[_Slot, int]:
        graphs = [captured[slot] for slot in sequence]
        request = self.request
        self.resident_bytes = self._resident(graphs[0].step.device)
        own_bytes = request.budget_bytes - sum(self.resident_bytes.values())
        try:
            shares: dict[_Slot, int] = {}
            for slot, share in zip(sequence, share_budget(graphs, own_bytes), strict=True):
                shares[slot] = min(share, shares.get(slot, share))
            return shares
        except InfeasibleError as error:
            least, planner = error.minimum_bytes, request.choice.planner
            raise budget_error(graphs, least, request.budget_bytes, self.resident_bytes, planner) from None

    def _resident(self, device: torch.device) -> dict[str, int]:
        kinds = resident_of_model(self.model, self._inputs, device)
        kinds["optimizer"] = self.request.optimizer_bytes
        kinds["reserve"] = self.request.reserve_bytes
        kinds["other"] = other_bytes(self.model, self._inputs, self.request.optimizer, device)
        return kinds


def _signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """Shapes and types of a call: what tells one planned call from another, cheaply."""
    leaves, tree = pytree.tree_flatten((args, kwargs))
    kinds = tuple(
        (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else type(leaf) for leaf in leaves
    )
    return kinds, tree


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
