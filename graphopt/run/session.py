"""Session: what `optimize()` puts in front of a model's forward.

A training call goes through torch.compile with our backend. A model that is captured whole is
planned right there. One that breaks into several graphs is first run once without gradients, only
to meet all of its graphs; then the budget is divided, and the call starts anew.

Of several processes that train the model together, each comes to its first capture in the same call:
there they agree on one plan. What one of them captures later it plans alone, as the others may not
have it; nothing in these graphs waits for another process.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from graphopt.base.errors import CaptureError, GraphoptError
from graphopt.capture.ambient import ambient
from graphopt.capture.aot import Decide
from graphopt.capture.dynamo import dynamo_errors, graphopt_errors, own_frame
from graphopt.device.ranks import ranks_of
from graphopt.device.snapshot import State, restore, snapshot, training_mode
from graphopt.emit.runnable import Runnable
from graphopt.graph.captured_graph import CapturedGraph
from graphopt.plan.agreement import give_up, plan_as_one
from graphopt.plan.graph_study import GraphStudy, studied
from graphopt.plan.resident import other_bytes, resident_of_model
from graphopt.plan.room import Room
from graphopt.plan.workspaces import take_workspaces
from graphopt.problem.schedule import Schedule
from graphopt.run.call_plan import CallPlan, Make, in_the_place_of, making_one, making_several, with_piece
from graphopt.run.dynamo_graph import DynamoGraph
from graphopt.run.phases import Meeting, Outcome, Phase, Planning, Running, called
from graphopt.run.request import Request
from graphopt.run.wrapping import (
    Wrapping,
    bytes_of,
    check_sharded_whole,
    forward_replaced,
    group_of,
    is_sharded,
    wrapping_of,
)

#: Captures after which all of them are forgotten, as each holds code and fake tensors.
MOST_GRAPHS = 256

Call = tuple[tuple[Any, ...], Mapping[str, Any]]


class Session:
    """The planned graphs of one model, and the call that runs them. `in_force` is the plan made last."""

    def __init__(self, model: nn.Module, request: Request) -> None:
        self.model = model
        self.request = request
        self.graphs: list[DynamoGraph] = []
        self.in_force: CallPlan | None = None
        self._phase: Phase = self._planning()
        self._inputs: object = ()
        #: What is planned for calls with inputs of these shapes and types.
        self._calls: dict[object, CallPlan | None] = {}
        self._signature: object = None
        self._wrapping: Wrapping | None = None
        #: Those to agree with, at the next graphs that are planned.
        self._ranks = ranks_of(request.group) if request.group is not None else None
        self._compiled = self._compile(model._call_impl)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model: planned where a training step needs it, as it was everywhere else."""
        if not (self.model.training and torch.is_grad_enabled()):
            return self.model._call_impl(*args, **kwargs)
        self._notice_wrapping()
        if is_sharded(self.model):
            with forward_replaced(self.model, self._train):
                return self.model._call_impl(*args, **kwargs)
        return self._train(*args, **kwargs)

    def plan(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Capture and plan for these inputs; nothing of the model is run that it could notice."""
        self._ranks = ranks_of(self.request.group)
        with training_mode(self.model), torch.enable_grad():
            self._together((args, kwargs), self._planning)

    @property
    def runnables(self) -> list[Runnable]:
        """The emitted graphs of all that is compiled, as autograd calls them."""
        return [runnable for graph in self.graphs if graph.compiled for runnable in graph.compiled.runnables]

    def _train(self, *args: Any, **kwargs: Any) -> Any:
        if len(self.graphs) >= MOST_GRAPHS:
            self._forget()
            warn_of_many_graphs()
        return self._together((args, kwargs), self._running)

    def _running(self) -> Running:
        known = self._calls.get(self._signature)
        several = known is not None and len(known.graphs) > 1
        return Running(self._planning(), self._plan_piece if several else None)

    def _planning(self) -> Planning:
        return Planning(self._plan_whole)

    def _notice_wrapping(self) -> None:
        """What DDP or FSDP2 hold is in the budget: within them everything is planned anew, by all processes at once."""
        wrapping = wrapping_of(self.model)
        if wrapping is None or wrapping is self._wrapping:
            return
        self._wrapping = wrapping
        self._ranks = ranks_of(self.request.group or group_of(wrapping))
        self._forget()

    def _forget(self) -> None:
        """Forget all that is captured and planned; what is needed is made anew."""
        self.graphs, self.in_force, self._calls = [], None, {}
        # FSDP2's hooks gather parameters and scatter gradients, which no graph may hold
        self._compiled = self._compile(self.model.forward if is_sharded(self.model) else self.model._call_impl)

    def _compile(self, call: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(own_frame(call), backend=self._backend, dynamic=False)

    def _backend(self, module: fx.GraphModule, _inputs: Sequence[Any]) -> DynamoGraph:
        """torch.compile's backend."""
        examples = [node.meta["example_value"] for node in module.graph.find_nodes(op="placeholder")]
        tracing = torch._guards.TracingContext.get()
        graph = DynamoGraph(module, examples, tracing, ambient(), self._on_call)
        self.graphs.append(graph)
        self._phase.on_new(graph)
        return graph

    def _on_call(self, graph: DynamoGraph, args: tuple[Any, ...]) -> Any:
        return self._phase.on_call(graph, args)

    def _together(self, call: Call, phase: Callable[[], Phase]) -> Any:
        """A call, planned together with the other processes where that is due: all of them raise what one raises."""
        try:
            result = self._planned_call(call, phase)
            if self._ranks:  # the others have something to plan where this one has not
                self._agreed([], lambda _room: [], torch.device("cpu"))
            return result
        except Exception as error:
            ranks, self._ranks = self._ranks, None
            give_up(ranks, error)
            raise

    def _planned_call(self, call: Call, phase: Callable[[], Phase]) -> Any:
        self._signature = _signature(call)
        before = None
        if self._signature not in self._calls:
            check_sharded_whole(self.model)
            before = snapshot(self.model)
        self._inputs = call
        try:
            self._phase = phase()
            outcome, result = self._attempt(call)
            if outcome is Outcome.UNPLANNED:
                if before is None:
                    raise CaptureError(
                        "a model that breaks into several graphs was captured anew in the middle of a call with inputs "
                        "like earlier ones: something else that it reads has changed; call optimize() again"
                    )
                self._meet_and_plan(call, before)
                self._phase = phase()
                outcome, result = self._attempt(call)
        finally:
            self._inputs = ()
        assert outcome is not Outcome.UNPLANNED, "all graphs of the call were met, and one of them has no plan"
        if outcome is Outcome.FINISHED:
            self.in_force = self._calls.setdefault(self._signature, self.in_force)
        if not self.graphs:
            raise CaptureError(
                f"nothing of {type(self.model).__name__} could be captured: torch.compile skipped its forward; "
                "TORCH_LOGS=graph_breaks shows why"
            )
        return result

    def _attempt(self, call: Call) -> tuple[Outcome, Any]:
        with dynamo_errors():
            return called(lambda: self._compiled(*call[0], **call[1]))

    def _plan_whole(self, graph: DynamoGraph) -> None:
        """Plan a graph that is the whole model, where it is met."""

        def decide(captured: CapturedGraph) -> Schedule:
            study = studied(captured, self.request.choice)
            make = making_one(study, self.request.choice)
            return self._agreed([(graph, study)], make, captured.step.device)[graph]

        graph.compile(self.request.choice.cost_model, decide)

    def _plan_piece(self, graph: DynamoGraph, position: int) -> None:
        """Plan a graph that was captured anew in a call of several, in the place of the one that it stands for."""
        call, choice = self._calls[self._signature], self.request.choice
        assert call is not None

        def decide(captured: CapturedGraph) -> Schedule:
            study = studied(captured, choice)
            planned = in_the_place_of(call, position, study, self.request.budget_bytes, choice)
            self.in_force = self._calls[self._signature] = with_piece(call, position, graph, planned)
            return planned.schedule

        graph.compile(choice.cost_model, decide)

    def _meet_and_plan(self, call: Call, before: State) -> None:
        """Run the model once without gradients to collect its graphs, then plan all of them."""
        restore(self.model, before)
        interrupted, meeting = self._phase, Meeting()
        self._phase = meeting
        try:
            self._attempt(call)
        except GraphoptError:
            raise
        except Exception as error:
            raise CaptureError(
                f"the model breaks into several graphs, and could not be run once without gradients to meet them: "
                f"{type(error).__name__}: {error}. A model that differentiates inside of its forward (autograd.grad, "
                "backward) cannot be planned, as graphopt does no second derivatives"
            ) from error
        finally:
            self._phase = interrupted
            restore(self.model, before)
        with graphopt_errors():
            self._plan_together(meeting.met)

    def _plan_together(self, met: Sequence[DynamoGraph]) -> None:
        """Divide the budget over the graphs of one call, in the order in which they ran."""
        choice = self.request.choice
        studies: dict[DynamoGraph, GraphStudy] = {}
        for number, graph in enumerate(dict.fromkeys(met), start=1):
            graph.name = f"graph {number}"
            captured = graph.capture(choice.cost_model)
            if captured is None:
                graph.compile_without_gradients(choice.cost_model)
            else:
                studies[graph] = studied(captured, choice)
        if not studies:
            return
        sequence = [(graph, studies[graph]) for graph in met if graph in studies]
        make = making_several([study for _, study in sequence], choice)
        schedules = self._agreed(sequence, make, sequence[0][1].graph.step.device)
        for graph, schedule in schedules.items():
            graph.compile(choice.cost_model, _always(schedule))

    def _agreed(
        self, sequence: Sequence[tuple[DynamoGraph, GraphStudy]], make: Make, device: torch.device
    ) -> dict[DynamoGraph, Schedule]:
        """What `make` plans for the distinct graphs of a sequence, together with other processes where that is due."""
        started = time.perf_counter()
        ranks, self._ranks = self._ranks, None
        studies = [study for _, study in dict.fromkeys(sequence)]
        take_workspaces((study.graph.step for study in studies), device, in_autograd=True)
        resident = self._resident(device)
        room = Room(self.request.budget_bytes, resident)
        # in a loop, each process has data of its own; examples are the same for all
        in_loop = isinstance(self._phase, Running)
        planned = plan_as_one(ranks, studies, room, self.request.choice, make, may_differ_in_shapes=in_loop)
        by_graph = {graph: plan for (graph, _), plan in zip(dict.fromkeys(sequence), planned, strict=True)}
        if sequence:
            graphs = tuple(graph for graph, _ in sequence)
            in_order = tuple(by_graph[graph] for graph in graphs)
            call = CallPlan(graphs, in_order, resident, time.perf_counter() - started)
            self.in_force = self._calls[self._signature] = call
        return {graph: plan.schedule for graph, plan in by_graph.items()}

    def _resident(self, device: torch.device) -> dict[str, int]:
        kinds = resident_of_model(self.model, self._inputs, device)
        kinds["optimizer"] = self.request.optimizer_bytes
        kinds["reserve"] = self.request.reserve_bytes
        if self._wrapping is not None:
            kinds |= bytes_of(self._wrapping, self.model)
        kinds["other"] = other_bytes(self.model, self._inputs, self.request.optimizer, device)
        return kinds


def warn_of_many_graphs() -> None:
    """What changes at every call costs a capture each time."""
    warnings.warn(
        f"graphopt: the model was captured {MOST_GRAPHS} times, for as many shapes or Python numbers that its forward "
        "reads (TORCH_LOGS=recompiles shows which); all are forgotten, and those in use are captured again. Pad to "
        "fewer shapes, or keep a number that changes in a buffer",
        stacklevel=3,
    )


def _always(schedule: Schedule) -> Decide:
    return lambda _graph: schedule


def _signature(call: Call) -> object:
    """Shapes and types of a call: what tells one planned call from another, cheaply."""
    leaves, tree = pytree.tree_flatten(call)
    kinds = tuple(
        (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else type(leaf) for leaf in leaves
    )
    return kinds, tree
