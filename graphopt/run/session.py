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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import fx, nn
from torch.utils import _pytree as pytree

from graphopt.base.errors import CaptureError, InfeasibleError
from graphopt.capture.aot import break_reason
from graphopt.capture.dynamo import dynamo_errors, graphopt_errors, own_frame
from graphopt.cost_models.model_state import optimizer_bytes
from graphopt.device.ranks import ranks_of
from graphopt.device.snapshot import State, restore, snapshot, training_mode
from graphopt.plan.agreement import Room, give_up, plan_as_one
from graphopt.plan.captured import CapturedGraph, Choice, PlannedGraph
from graphopt.plan.infeasible import budget_error
from graphopt.plan.pipeline import plan_graph, plan_within
from graphopt.plan.resident import other_bytes, resident_of_model
from graphopt.plan.shares import joint_peak_bytes, share_budget
from graphopt.plan.workspaces import take_workspaces
from graphopt.run.dynamo_graph import Compiled, MeetGraphs, OnlyPlan, Slot
from graphopt.run.wrapping import (
    Wrapping,
    bytes_of,
    check_sharded_whole,
    forward_replaced,
    group_of,
    is_sharded,
    wrapping_of,
)


@dataclass(frozen=True)
class Request:
    """What the user asked for, in bytes; `group` are the processes that plan together, if others than it seems."""

    budget_bytes: int
    choice: Choice
    reserve_bytes: int = 0
    optimizer: torch.optim.Optimizer | None = None
    group: dist.ProcessGroup | None = None

    @property
    def optimizer_bytes(self) -> int:
        """What the optimizer's state takes: real where it has stepped, else predicted."""
        return optimizer_bytes(self.optimizer) if self.optimizer is not None else 0


class Session:
    """The planned graphs of one model, and the call that runs them."""

    def __init__(self, model: nn.Module, request: Request) -> None:
        self.model = model
        self.request = request
        self.slots: list[Slot] = []
        self.met: list[Slot] = []
        self.planned: list[PlannedGraph] = []
        self.resident_bytes: Mapping[str, int] = {}
        self.plan_seconds = 0.0
        self.meeting = False
        self.only_plan = False
        self._inputs: object = ()
        self._known_calls: set[object] = set()
        self._planned_alone: Slot | None = None
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
            with forward_replaced(self.model, self._call):
                return self.model._call_impl(*args, **kwargs)
        return self._call(*args, **kwargs)

    def plan(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Capture and plan for these inputs; nothing of the model is run that it could notice."""
        self.only_plan = True
        self._ranks = ranks_of(self.request.group)
        try:
            with training_mode(self.model), torch.enable_grad():
                self._call(*args, **kwargs)
        except OnlyPlan:
            pass
        finally:
            self.only_plan = False

    def _notice_wrapping(self) -> None:
        """What DDP or FSDP2 hold is in the budget: within them everything is planned anew, by all processes at once."""
        wrapping = wrapping_of(self.model)
        if wrapping is None or wrapping is self._wrapping:
            return
        self._wrapping = wrapping
        self._ranks = ranks_of(self.request.group or group_of(wrapping))
        self.slots, self.planned, self._known_calls = [], [], set()
        if is_sharded(self.model):
            # its hooks gather parameters and scatter gradients, which no graph may hold
            self._compiled = self._compile(self.model.forward)
        else:
            self._compiled = self._compile(self.model._call_impl)

    def _compile(self, call: Compiled) -> Compiled:
        return torch.compile(own_frame(call), backend=self._backend, dynamic=False)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        try:
            result = self._planned_call(args, kwargs)
            if self._ranks:  # the others have something to plan where this one has not
                self._agreed([], lambda _room: [], torch.device("cpu"))
            return result
        except OnlyPlan:
            raise
        except Exception as error:
            ranks, self._ranks = self._ranks, None
            give_up(ranks, error)
            raise

    def _planned_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = _signature(args, kwargs)
        before = None
        if call not in self._known_calls:
            check_sharded_whole(self.model)
            before = snapshot(self.model)
        self._inputs, self._planned_alone = (args, kwargs), None
        try:
            try:
                result = self._run(args, kwargs)
            except MeetGraphs:
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
        slot = Slot(self, module, examples, torch._guards.TracingContext.get(), "model")
        self.slots.append(slot)
        # a second graph in one call means that the first was not the whole model either
        if not (self.meeting or self._planned_alone or break_reason(module)):
            slot.compile(self._plan_alone)
            self._planned_alone = slot
        return slot

    def _plan_alone(self, captured: CapturedGraph) -> PlannedGraph:
        def make(room: Room) -> list[PlannedGraph]:
            return [plan_within(captured, room.budget_bytes, room.resident_bytes, self.request.choice)]

        self.planned = self._agreed([captured], make, captured.step.device)
        return self.planned[0]

    def _agreed(
        self, graphs: Sequence[CapturedGraph], make: Callable[[Room], list[PlannedGraph]], device: torch.device
    ) -> list[PlannedGraph]:
        """What `make` plans, together with the other processes where that is due."""
        started = time.perf_counter()
        ranks, self._ranks = self._ranks, None
        take_workspaces((graph.step for graph in graphs), device, in_autograd=True)
        self.resident_bytes = self._resident(device)
        room = Room(self.request.budget_bytes, self.resident_bytes)
        # in a loop, each process has data of its own; examples are the same for all
        planned = plan_as_one(ranks, graphs, room, self.request.choice, make, may_differ_in_shapes=not self.only_plan)
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

    def _plan_together(self, met: Sequence[Slot]) -> None:
        """Divide the budget over the graphs of one call, in the order in which they ran; one may run twice."""
        slots = list(dict.fromkeys(met))
        for number, slot in enumerate(slots, start=1):
            slot.name = f"graph {number}"
        captured = {slot: graph for slot in slots if (graph := slot.capture()) is not None}
        sequence = [slot for slot in met if slot in captured]
        if not sequence:
            return
        choice = self.request.choice
        choice = replace(choice, plan_seconds=choice.plan_seconds / len(captured))

        def make(room: Room) -> list[PlannedGraph]:
            shares = _shares(sequence, captured, room, choice)
            planned = {slot: plan_graph(graph, shares[slot], choice) for slot, graph in captured.items()}
            schedules = [planned[slot].schedule for slot in sequence]
            if choice.plan_seconds and joint_peak_bytes([captured[s] for s in sequence], schedules) > room.own_bytes:
                # inside its share, a search for better may keep more for the backward than the others leave room for
                plain = replace(choice, plan_seconds=0.0)
                return [plan_graph(graph, shares[slot], plain) for slot, graph in captured.items()]
            return list(planned.values())

        graphs = list(captured.values())
        planned = dict(zip(captured, self._agreed(graphs, make, graphs[0].step.device), strict=True))
        self.planned = [planned[slot] for slot in sequence]
        for slot in captured:
            slot.compile(lambda _again, slot=slot: planned[slot])  # type: ignore[misc]

    def _resident(self, device: torch.device) -> dict[str, int]:
        kinds = resident_of_model(self.model, self._inputs, device)
        kinds["optimizer"] = self.request.optimizer_bytes
        kinds["reserve"] = self.request.reserve_bytes
        if self._wrapping is not None:
            kinds |= bytes_of(self._wrapping, self.model)
        kinds["other"] = other_bytes(self.model, self._inputs, self.request.optimizer, device)
        return kinds


def _shares(
    sequence: Sequence[Slot], captured: Mapping[Slot, CapturedGraph], room: Room, choice: Choice
) -> dict[Slot, int]:
    """What each graph may use of the room, the least of its shares where it runs more than once."""
    graphs = [captured[slot] for slot in sequence]
    try:
        shares: dict[Slot, int] = {}
        for slot, share in zip(sequence, share_budget(graphs, room.own_bytes, choice.planner), strict=True):
            shares[slot] = min(share, shares.get(slot, share))
        return shares
    except InfeasibleError as error:
        least = error.minimum_bytes
        raise budget_error(graphs, least, room.budget_bytes, room.resident_bytes, choice.planner) from None


def _signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """Shapes and types of a call: what tells one planned call from another, cheaply."""
    leaves, tree = pytree.tree_flatten((args, kwargs))
    kinds = tuple(
        (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else type(leaf) for leaf in leaves
    )
    return kinds, tree
