"""Plans: what is planned for a model's calls, and for which."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import nn

from graphopt.base.errors import BudgetError
from graphopt.base.progress import phase
from graphopt.device.ranks import Ranks
from graphopt.graph.captured_graph import Decision
from graphopt.plan.agreement import plan_as_one
from graphopt.plan.graph_study import GraphStudy
from graphopt.plan.offload.worth import moving_where_faster
from graphopt.plan.pieces import in_fewest_pieces
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.plan.resident import other_bytes, resident_of_model
from graphopt.plan.room import Room
from graphopt.plan.shares import joint_peak_bytes
from graphopt.plan.workspaces import take_workspaces
from graphopt.run.calls.call_plan import CallPlan, in_the_place_of, log_plan, with_piece
from graphopt.run.calls.kernel_bytes import KernelBytes, is_compiled
from graphopt.run.calls.loop import Loop
from graphopt.run.calls.make_plans import (
    Make,
    at_least_the_smallest,
    making_in_pattern,
    making_one,
    making_part,
    making_several,
)
from graphopt.run.graphs.call_key import Call, CallKey, Shapes
from graphopt.run.graphs.dynamo_graph import DynamoGraph
from graphopt.run.graphs.gradients import GradientSums
from graphopt.run.model.loss_module import users_model
from graphopt.run.model.request import Request
from graphopt.run.model.short_step import planned_model
from graphopt.run.model.wrapping import Wrapping, bytes_of

#: Kinds of calls whose plans are kept, the least recently used go: of a graph with a thousand ops each takes half a
#: megabyte of host memory.
MOST_CALLS = 256


class Plans:
    """The plans of one model's calls. `in_force` is the one made last; `key` and `inputs` are of the call being made.

    A `wrapping` is what DDP or FSDP2 put around the model.
    """

    def __init__(self, model: nn.Module, request: Request, loop: Loop) -> None:
        self.in_force: CallPlan | None = None
        self.key = CallKey(loop.shapes.of(((), {})))
        self.inputs: Call = ((), {})
        self.wrapping: Wrapping | None = None
        self._model, self._request, self._loop = model, request, loop
        self._calls: dict[CallKey, CallPlan] = {}
        #: Each graph's plan for such calls, which may come to others at the same shapes: numbers and flags decide.
        self._with: dict[tuple[CallKey, DynamoGraph], CallPlan] = {}
        self._sequences: dict[Shapes, tuple[DynamoGraph, ...]] = {}
        self._input_bytes: dict[Shapes, int] = {}
        self._kernels = KernelBytes()

    @property
    def of_call(self) -> CallPlan | None:
        """The plan of the call that is being made; None where it has none yet."""
        return self._calls.get(self.key)

    @property
    def sequence(self) -> tuple[DynamoGraph, ...]:
        """The graphs of calls with the same shapes, in the order in which they ran; () where none was made."""
        return self._sequences.get(self.key.shapes, ())

    @property
    def sums(self) -> list[GradientSums]:
        """How graphs hand their gradients over that are known to run in the call being made."""
        return self.sums_of(self.key.shapes)

    def sums_of(self, shapes: Shapes) -> list[GradientSums]:
        """How the graphs of calls with these shapes hand their gradients over; where none was made, all graphs."""
        known = self._sequences.get(shapes)
        graphs = known if known is not None else dict.fromkeys(chain.from_iterable(self._sequences.values()))
        return [graph.sums for graph in graphs]

    def comes_to(self, graph: DynamoGraph) -> None:
        """The call that is being made runs this graph: its plan is one that has it, where there is such."""
        call = self.of_call
        if call is not None and graph not in call.graphs:
            self._calls[self.key] = call = self._with.get((self.key, graph), call)
            self._sequences[self.key.shapes] = call.graphs

    def is_used(self) -> None:
        """The call that is being made was run by its plan."""
        call = self._calls.pop(self.key, None)
        if call is not None:
            self._calls[self.key] = self.in_force = call  # the last of those that were used
        while len(self._calls) > MOST_CALLS:
            self._drop_call(next(iter(self._calls)))

    def forget(self) -> None:
        """Forget what is planned: there is less room than was thought. Which graphs calls have stays known."""
        self._calls.clear()
        self._with.clear()
        self._kernels.forget()

    def drop(self, graph: DynamoGraph) -> None:
        """Forget what is planned with this graph."""
        self._with = {key: call for key, call in self._with.items() if graph not in call.graphs}
        self._calls = {key: call for key, call in self._calls.items() if graph not in call.graphs}
        for (key, _), call in self._with.items():
            self._calls.setdefault(key, call)
        self._sequences = {shapes: graphs for shapes, graphs in self._sequences.items() if graph not in graphs}
        for key, call in self._calls.items():
            self._sequences.setdefault(key.shapes, call.graphs)
        self._input_bytes = {shapes: size for shapes, size in self._input_bytes.items() if shapes in self._sequences}

    def _drop_call(self, key: CallKey) -> None:
        """Forget what is planned for such calls; their graphs stay, for others."""
        call = self._calls.pop(key)
        for graph in call.graphs:
            graph.compiled.pop(key, None)
            self._with.pop((key, graph), None)
        if not any(other.shapes is key.shapes for other in self._calls):
            self._sequences.pop(key.shapes, None)
            self._input_bytes.pop(key.shapes, None)

    def forget_all(self) -> None:
        """Forget the graphs too."""
        self.in_force = None
        self._kernels.forget()
        for known in (self._calls, self._with, self._sequences, self._input_bytes):
            known.clear()

    def plan(
        self,
        sequence: Sequence[tuple[DynamoGraph, GraphStudy]],
        device: torch.device,
        ranks: Ranks | None,
        in_loop: bool,
    ) -> dict[DynamoGraph, Decision]:
        """Plan the distinct graphs of the call, in the order in which they run, together with other ranks where given.

        In a loop each rank has data of its own; examples are the same for all. Raises BudgetError, PlanMismatchError.
        """
        started = time.perf_counter()
        graphs = tuple(graph for graph, _ in sequence)
        if graphs:
            self._sequences[self.key.shapes] = graphs
        studies = [study for _, study in dict.fromkeys(sequence)]
        take_workspaces((study.graph.step for study in studies), device, in_autograd=True)
        resident = self._resident(device, in_loop)
        room = self._room(resident)
        make = self._make([study for _, study in sequence])
        try:
            with phase("planning"):
                planned = plan_as_one(ranks, studies, room, self._request.choice, make, may_differ_in_shapes=in_loop)
        except BudgetError:
            if not (in_loop and ranks is None and self._loop.tries_without()):
                raise
            # what was measured once may not come again: the smallest plan shows whether it does
            resident = self._resident(device, in_loop)
            room = self._room(resident)
            planned = at_least_the_smallest(make)(replace(room, budget_bytes=0))
        by_graph = {graph: plan for (graph, _), plan in zip(dict.fromkeys(sequence), planned, strict=True)}
        if graphs:
            in_order = tuple(by_graph[graph] for graph in graphs)
            resident |= self._others_in_pattern(in_order)
            self._now(CallPlan(self.key, graphs, in_order, resident, time.perf_counter() - started))
        return {graph: plan.decision for graph, plan in by_graph.items()}

    def plan_piece(self, graph: DynamoGraph, position: int, study: GraphStudy) -> Decision:
        """Plan a graph that was captured anew in a call of several, in the place of the one at that position."""
        call = self.of_call
        assert call is not None
        planned = in_the_place_of(call, position, study, self._request.budget_bytes, self._request.choice)
        call = with_piece(call, position, graph, planned)
        self._sequences[self.key.shapes] = call.graphs
        self._now(call)
        return planned.decision

    def rounds(self) -> Iterator[None]:
        """For each the call is planned and compiled: once, and again where its kernels take other bytes."""
        self._kernels.begins(self.key)
        yield
        while self._wants_another():
            yield

    def _wants_another(self) -> bool:
        call = self.of_call
        if call is None or not is_compiled(call):  # nothing of it needs a gradient, or eager's kernels run
            return False
        self._now(self._kernels.measured(call))
        assert self.in_force is not None
        return self._kernels.wants_another(self.in_force, self._request.budget_bytes)

    def _room(self, resident_bytes: Mapping[str, int]) -> Room:
        """What is there for the graphs of the call, beside what is resident and what compiled kernels took last."""
        return Room(self._request.budget_bytes - self._kernels.beside_bytes(self.key), resident_bytes)

    def _now(self, call: CallPlan) -> None:
        self.in_force = self._calls[self.key] = call
        self._with |= {(self.key, graph): call for graph in call.graphs}
        log_plan(call, type(users_model(self._model)).__name__, self._request.budget_bytes)

    def _make(self, sequence: Sequence[GraphStudy]) -> Make:
        """How the graphs of the call are planned inside of a room."""
        choice = self._request.choice
        if self._request.part is not None:
            return making_part(sequence, self._request.part, choice)
        if self.key.pattern:
            pattern, count = self._studies_of_pattern(), len(sequence)
            return in_fewest_pieces(
                [*sequence, *pattern], lambda forms: making_in_pattern(forms[:count], forms[count:], choice)
            )

        def make_for(forms: Sequence[GraphStudy]) -> Make:
            return making_one(forms[0], choice) if len(forms) == 1 else making_several(forms, choice)

        make = in_fewest_pieces(sequence, lambda forms: moving_where_faster(forms, make_for, choice))
        # of kernels that are compiled a measurement decides, not the plan
        return at_least_the_smallest(make) if self.key.behind or choice.compiler != "eager" else make

    def _studies_of_pattern(self) -> list[GraphStudy]:
        """The graphs of all forwards that wait for the same backward, as they return their gradients, in order."""
        choice = self._request.choice
        studies = [
            graph.study(choice, False, shapes)
            for shapes in self.key.pattern
            for graph in self._sequences.get(shapes, ())
        ]
        return [study for study in studies if study is not None]

    def _others_in_pattern(self, planned: Sequence[PlannedGraph]) -> dict[str, int]:
        """What the other forwards that wait for the same backward add to this one's peak, by kind."""
        if not self.key.pattern:
            return {}
        chosen: dict[GraphStudy, PlannedGraph] = {}
        for shapes in self.key.pattern:
            known = self._calls.get(replace(self.key, shapes=shapes))
            chosen |= {each.study.origin: each for each in known.planned} if known else {}
        chosen |= {each.study.origin: each for each in planned}
        whole = [chosen[study] for study in self._studies_of_pattern() if study in chosen]
        peak_bytes = joint_peak_bytes([each.study for each in whole], [each.schedule for each in whole])
        own_peak_bytes = joint_peak_bytes([each.study for each in planned], [each.schedule for each in planned])
        return {"other forwards before the same backward": peak_bytes - own_peak_bytes}

    def _resident(self, device: torch.device, in_loop: bool) -> dict[str, int]:
        """What is there beside the graphs, by kind; what a loop holds counts in a loop alone, and not for examples."""
        request = self._request
        model = planned_model(self._model)
        kinds = resident_of_model(model, self.inputs, device)
        self._input_bytes[self.key.shapes] = kinds["inputs"]
        kinds["optimizer"] = request.optimizer_bytes
        kinds["reserve"] = request.reserve_bytes
        if self.wrapping is not None:
            kinds |= bytes_of(self.wrapping, self._model)
        if in_loop:
            others = self._input_bytes
            kinds |= self._loop.held_bytes(self.key, lambda shapes: others.get(shapes, 0), device, self.wrapping)
        kinds["other"] = other_bytes(model, self.inputs, request.optimizer, device)
        return kinds
