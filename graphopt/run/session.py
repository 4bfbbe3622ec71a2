"""Session: what `optimize()` puts in front of a model's forward.

A training call goes through torch.compile with our backend. A model that is captured whole is planned right there. One
that breaks into several graphs is first run once with nothing kept, only to meet all of its graphs; then the budget is
divided, and the call starts anew. Of several processes that train the model together, each comes to its first capture
in the same call: there they agree on one plan. What one captures later it plans alone, as others may not have it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch
from torch import fx, nn

from graphopt.base.errors import CaptureError, GraphoptError
from graphopt.capture.by_shape import is_mended_by_shape
from graphopt.capture.captures import Recaptures
from graphopt.capture.changing_sizes import has_symbols
from graphopt.capture.check_tensors import check_tensors, obstacle_among
from graphopt.capture.dynamo import compiled, graphopt_errors
from graphopt.capture.noted_breaks import ANOTHER_WAY, noted_breaks, nothing_captured
from graphopt.device.ranks import ranks_of
from graphopt.device.snapshot import State, generators_kept, restore, training_mode, undone
from graphopt.device.storages import tensors_in
from graphopt.emit.runnable import Runnable
from graphopt.graph.captured_graph import Decision
from graphopt.plan.agreement import give_up
from graphopt.plan.graph_study import GraphStudy
from graphopt.problem.graph_break import GraphBreak
from graphopt.report.data import OutsideShare
from graphopt.run.beginning import Beginning
from graphopt.run.calls.call_plan import CallPlan
from graphopt.run.calls.loop import Loop
from graphopt.run.calls.plans import Plans
from graphopt.run.example_differs import Example
from graphopt.run.graphs.call_key import Call, CallKey
from graphopt.run.graphs.dynamo_graph import DynamoGraph
from graphopt.run.graphs.met_graph import MOST_CAPTURES, met_graph, too_many
from graphopt.run.model.compiled_from_outside import refuse_compiles_from_outside
from graphopt.run.model.loss_module import users_model
from graphopt.run.model.request import Request
from graphopt.run.model.transforms import is_transformed, say_that_transforms_are_not_planned
from graphopt.run.model.wrapping import check_sharded_whole, forward_replaced, group_of, is_sharded, wrapping_of
from graphopt.run.phases import Meeting, Outcome, Phase, Planning, Running, called
from graphopt.run.trial_forward import run_to_meet, try_forward
from graphopt.run.unplanned import Unplanned


class Session:
    """The graphs of one model, and the call that runs them as they are planned."""

    def __init__(self, model: nn.Module, request: Request) -> None:
        self.model, self.request = model, request
        self.graphs: list[DynamoGraph] = []
        self.loop = Loop(model, request, self.forget_plans, lambda: all(graph.is_whole_model for graph in self.graphs))
        self._plans = Plans(model, request, self.loop)
        session = weakref.ref(self)
        self._surroundings = self.loop.surroundings(lambda graph, args: _there(session()).on_call(graph, args))
        self._phase: Phase = self._planning()
        self._example: Example | None = None  # what was planned before a training call, until there is one
        #: Those to agree with, at the next graphs that are planned.
        self._ranks = ranks_of(request.group) if request.group is not None else None
        self.sizes = request.sizes()
        self._compiled = self._compile(model._call_impl)
        self._told_of_transforms, self._recaptures, self._calls, self._captures = False, Recaptures(), 0, 0
        refuse_compiles_from_outside()
        self.tried: OutsideShare | None = None  # outside of the graphs, as a forward shows it; None where all is in one
        self._breaks: dict[GraphBreak, None] = {}
        # and why nothing was captured in the last call: Dynamo would not look again, were that gone
        self._beginning, self._obstacle, self._unplanned = Beginning(model), "", Unplanned()

    @torch._dynamo.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model: planned where a training step needs it, as it was everywhere else."""
        if not (self.model.training and torch.is_grad_enabled()):
            self.loop.pauses()
            return self._unplanned.evaluated(self.model._call_impl(*args, **kwargs))
        if is_transformed():
            self._told_of_transforms = self._told_of_transforms or say_that_transforms_are_not_planned()
            return self.model._call_impl(*args, **kwargs)
        self._notice_wrapping()
        with self.loop.one_at_a_time:
            if is_sharded(self.model):
                with self.loop.gathering(), forward_replaced(self.model, self._train):
                    return self.model._call_impl(*args, **kwargs)
            return self._train(*args, **kwargs)

    def plan(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Capture and plan for these inputs; nothing of the model is run that it could notice."""
        self._ranks = ranks_of(self.request.group)
        self._plans.key = CallKey(self.loop.shapes.of((args, kwargs)))
        with undone(self.model, (args, kwargs)), training_mode(self.model), torch.enable_grad():
            self._together((args, kwargs), self._planning)
            if self._breaks:
                self.tried = try_forward(self.model, (args, kwargs), self._in_phase)
        self._example = Example.of(self.graphs)

    @property
    def breaks(self) -> tuple[GraphBreak, ...]:
        """Where the captures of the model ended before it did, in the order in which they were met."""
        return tuple(self._breaks)

    @property
    def in_force(self) -> CallPlan | None:
        """The plan made last."""
        return self._plans.in_force

    @property
    def runnables(self) -> list[Runnable]:
        """The emitted graphs of all that is compiled, as autograd calls them."""
        return [runnable for graph in self.graphs for each in graph.compiled.values() for runnable in each.runnables]

    def forget_tangents(self) -> None:
        """Take no notice of the backwards that ran so far: they were not those of training."""
        for graph in self.graphs:
            graph.forgets_tangents()

    def _train(self, *args: Any, **kwargs: Any) -> Any:
        self._bound_graphs()
        plans, call = self._plans, (args, kwargs)
        plans.key = self.loop.begins(call, plans.sums_of, plans.wrapping)
        result = self._together(call, self._running)
        self.loop.ends(plans.of_call, result)
        self.request = self.request.once_served(self.sizes)
        if self._example is not None:
            self._example.warn_if_captured_anew(self.graphs)
            self._example = None
        return result

    def _running(self) -> Running:
        known = self._plans.of_call
        several = known is not None and len(known.graphs) > 1
        return Running(self._planning(), self._plan_piece if several else None, known is not None)

    def _planning(self) -> Planning:
        return Planning(self._plans.key, self._plan_whole)

    def _notice_wrapping(self) -> None:
        """What DDP or FSDP2 hold is in the budget: within them everything is planned anew, by all processes at once."""
        wrapping = wrapping_of(self.model)
        if wrapping is None or wrapping is self._plans.wrapping:
            return
        self._plans.wrapping = wrapping
        self._ranks = ranks_of(self.request.group or group_of(wrapping))
        self._forget()

    def _bound_graphs(self) -> None:
        """A call begins: drop what was not used for longest where there is too much, but nothing of the last call."""
        if self._captures >= MOST_CAPTURES or (self._obstacle and not obstacle_among(self.model, ())):
            self._forget()
        self._calls += 1
        for graph in too_many(self.graphs, self._calls):
            self.graphs.remove(graph)
            self._plans.drop(graph)
            graph.capture.drop()

    def _forget(self) -> None:
        """Forget all that is captured and planned; what is needed is made anew."""
        self.graphs, self._example, self._captures, self.tried, self._obstacle = [], None, 0, None, ""
        self._breaks.clear()
        self._plans.forget_all()
        # FSDP2's hooks gather parameters and scatter gradients, which no graph may hold
        self._compiled = self._compile(self.model.forward if is_sharded(self.model) else self.model._call_impl)

    def forget_plans(self) -> None:
        """There is less room than was thought: what was captured stays, and is planned anew."""
        self._plans.forget()
        loss_bytes = self.loop.watch.corrections.loss_bytes if self.loop.watch is not None else 0
        for graph in self.graphs:
            graph.compiled.clear()
            if graph.studies.loss_bytes != loss_bytes:
                graph.studies.with_loss(loss_bytes)

    def _compile(self, call: Callable[..., Any]) -> Callable[..., Any]:
        session = weakref.ref(self)

        def backend(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            # Dynamo keeps every backend that there ever was, and code that calls graphs: they must not keep the model
            graph = weakref.ref(_there(session())._backend(module, inputs))
            return lambda *args: _there(graph())(*args)

        return compiled(call, backend, lambda code: _there(session())._while_capturing(code), self.sizes)

    def _backend(self, module: fx.GraphModule, inputs: Sequence[Any]) -> DynamoGraph:
        """torch.compile's backend."""
        self._captures += 1
        self._recaptures.tell()
        graph = met_graph(module, inputs, self.request.choice.kept, self._surroundings, self.sizes, self._plans.sums)
        graph.last_call = self._calls
        self.graphs.append(graph)
        self._phase.on_new(graph)
        if has_symbols(module) and not graph.compiled:
            # what tracing it asks of them is a guard only now
            graph.study(self.request.choice, False, self._plans.key.shapes)
        graph.is_met()
        return graph

    def on_call(self, graph: DynamoGraph, args: tuple[Any, ...]) -> Any:
        """One of Dynamo's graphs is called."""
        graph.last_call = self._calls
        graph.symbols.come(self._plans.key.shapes, args)
        if self._plans.key in graph.compiled:
            self._plans.comes_to(graph)
        return self._phase.on_call(graph, args)

    def _together(self, call: Call, phase: Callable[[], Phase]) -> Any:
        """A call, planned together with the other processes where that is due: all of them raise what one raises."""
        try:
            result = self._planned_call(call, phase)
            if self._ranks:  # the others have something to plan where this one has not
                self._agreed([], torch.device("cpu"))
            return result
        except Exception as error:
            ranks, self._ranks = self._ranks, None
            if not ranks and is_mended_by_shape(error, self.sizes, self.request.choice):
                self._forget()
                return self._together(call, phase)
            give_up(ranks, error)
            raise

    def _planned_call(self, call: Call, phase: Callable[[], Phase]) -> Any:
        known = self._plans.of_call
        self._beginning.of_call(call, has_breaks=bool(self._breaks))
        if known is None:
            check_sharded_whole(self.model)
            check_tensors(self.model, tensors_in(call))
        if known is None or len(known.graphs) > 1 or self._breaks:  # a part may be captured anew when others have run
            self.loop.sets_aside(self._beginning.keep())
        self._plans.inputs = call
        try:
            self._phase = phase()
            if self._plans.of_call is None and self._plans.sequence:
                with self.loop.away(), graphopt_errors():
                    self._plan_together(self._plans.sequence)
                self._phase = phase()
            outcome, result = self._attempt(call)
            if outcome is Outcome.UNPLANNED:
                # a model that was one graph and now breaks has run none of its graphs: it is as it was
                with self.loop.away(), graphopt_errors():
                    self._meet_and_plan(call, self._beginning.state())
                self._phase = phase()
                outcome, result = self._attempt(call)
        except GraphoptError:
            raise
        except BaseException:  # also where it is interrupted
            self.loop.raised()
            if self._beginning.was_in_vain():
                self._forget()
            raise
        finally:
            self._plans.inputs = ((), {})
            self._beginning.forget()
            self._phase.written.forget()
            self.loop.sets_aside(0)
        if outcome is Outcome.FINISHED and any(graph.last_call == self._calls for graph in self.graphs):
            self._plans.is_used()
            self._obstacle = ""
            return result
        obstacle = obstacle_among(self.model, tensors_in(call))
        if outcome is Outcome.UNPLANNED and self.graphs and not obstacle:
            raise CaptureError(ANOTHER_WAY)
        why = nothing_captured(type(users_model(self.model)).__name__, self.breaks, obstacle)
        if outcome is Outcome.UNPLANNED or not self.graphs:
            raise CaptureError(why)
        if outcome is Outcome.FINISHED:
            self._obstacle = obstacle
            self._unplanned.ran(why)
        return result

    def _attempt(self, call: Call) -> tuple[Outcome, Any]:
        with graphopt_errors():
            return called(lambda: self._compiled(*call[0], **call[1]))

    @contextmanager
    def _while_capturing(self, code: CodeType) -> Iterator[None]:
        self._beginning.captures(code)
        with self.loop.away(), noted_breaks(self._on_break):
            yield

    def _on_break(self, met: GraphBreak) -> None:
        self._breaks.setdefault(met)
        if isinstance(self._phase, Running):
            self.loop.sets_aside(self._beginning.breaks())

    def _in_phase(self, phase: Phase, call: Call) -> tuple[Outcome, Any]:
        interrupted, self._phase = self._phase, phase
        try:
            return self._attempt(call)
        finally:
            self._phase = interrupted

    def _plan_whole(self, graph: DynamoGraph) -> None:
        """Plan a graph that is the whole model, where it is met."""

        def plan(study: GraphStudy) -> Decision:
            return self._agreed([(graph, study)], study.graph.step.device)[graph]

        with self.loop.away():
            for _ in self._plans.rounds():
                graph.compile(self._plans.key, self.request.choice, plan)

    def _plan_piece(self, graph: DynamoGraph, position: int) -> None:
        """Plan a graph that was captured anew in a call of several, in the place of the one that it stands for."""
        plans = self._plans
        with self.loop.away():
            graph.compile(plans.key, self.request.choice, lambda study: plans.plan_piece(graph, position, study))

    def _meet_and_plan(self, call: Call, before: State) -> None:
        """Run the model once with nothing kept to collect its graphs, then plan all of them."""
        meeting = Meeting()
        self._phase.written.put_back()
        restore(self.model, before)
        run_to_meet(self.model, call, meeting, before, self._in_phase)
        self._plan_together(meeting.met)

    @generators_kept()
    def _plan_together(self, met: Sequence[DynamoGraph]) -> None:
        """Divide the budget over the graphs of one call, in the order in which they ran."""
        choice, key = self.request.choice, self._plans.key
        studies: dict[DynamoGraph, GraphStudy] = {}
        for number, graph in enumerate(dict.fromkeys(met), start=1):
            graph.name = f"graph {number}" if len(met) > 1 else graph.name
            study = graph.study(choice, key.adds, key.shapes)
            if study is None:
                graph.compile_without_gradients(key, choice)
            else:
                studies[graph] = study
        if not studies:
            return
        sequence = [(graph, studies[graph]) for graph in met if graph in studies]
        for _ in self._plans.rounds():
            for graph, decision in self._agreed(sequence, sequence[0][1].graph.step.device).items():
                graph.compile(key, choice, lambda _study, decision=decision: decision)  # type: ignore[misc]

    def _agreed(
        self, sequence: Sequence[tuple[DynamoGraph, GraphStudy]], device: torch.device
    ) -> dict[DynamoGraph, Decision]:
        """What is planned for the distinct graphs of a sequence, together with other processes where that is due."""
        ranks, self._ranks = self._ranks, None
        return self._plans.plan(sequence, device, ranks, in_loop=isinstance(self._phase, Running))


def _there(found: Any) -> Any:
    assert found is not None, "what Dynamo keeps is called by the model that it is of, and not after it was dropped"
    return found
