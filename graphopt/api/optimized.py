"""Optimized: what `optimize()` leaves at `model.graphopt`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx, nn

from graphopt.base.errors import UsageError
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.problem.plan import Plan
from graphopt.report.build import build_report
from graphopt.report.data import CompiledKernels, Measured, Report
from graphopt.report.traces.from_plans import timeline_of_call
from graphopt.report.traces.timeline import Timeline
from graphopt.run.calls.call_plan import CallPlan
from graphopt.run.model.loss_module import users_model
from graphopt.run.session import Session
from graphopt.run.watch.measured_step import MeasuredStep, outside_share, taken_steps, trained_steps


class Optimized:
    """What `optimize()` leaves at `model.graphopt`: the plan, its report, the graphs, and the way back.

    `session` is what runs the model; `measured` what the last verification measured, None before.
    """

    def __init__(self, model: nn.Module, session: Session) -> None:
        self._model = model
        self.session = session
        self.measured: Measured | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # a copied or pickled model is a plain one
        return (_nothing, ())

    def __repr__(self) -> str:
        name = type(users_model(self._model)).__name__
        return f"<graphopt of {name}: {self.plan!r}>" if self.planned_graphs else f"<graphopt of {name}: no plan yet>"

    def _repr_html_(self) -> str | None:
        return self.report._repr_html_() if self.planned_graphs else None

    @property
    def plan(self) -> Plan:
        """The plan in force, the last one made; raises UsageError before the first training call."""
        name = type(users_model(self._model)).__name__
        return self.in_force.plan_of(name, self.session.request.budget_bytes)

    @property
    def in_force(self) -> CallPlan:
        """The graphs of the call that was planned last; raises UsageError before the first."""
        if self.session.in_force is None:
            raise UsageError(
                "there is nothing to plan: nothing in the model, and none of its inputs, needs a gradient, so that it "
                "runs as it is"
                if self.session.graphs
                else "nothing is planned yet: call the model in training mode, or give optimize() example_inputs"
            )
        return self.session.in_force

    @property
    def report(self) -> Report:
        """The report of the plan in force; `print` it."""
        report = build_report(self.plan, self.in_force.planned, self.in_force.plan_seconds)
        request = self.session.request
        trained = trained_steps(self.history, request.budget_bytes - request.reserve_bytes)
        return replace(
            report,
            measured=self.measured,
            trained=trained,
            outside=outside_share(self.history) or self.session.tried,
            breaks=self.session.breaks,
            compiled=_compiled(self.in_force),
            size_conditions=_size_conditions(self.session),
            history=taken_steps(self.history),
            scratch=self.session.loop.found_scratch,
        )

    @property
    def timeline(self) -> Timeline:
        """The step as it is predicted, op by op: `timeline.save_trace(path)`, `timeline.save_snapshot(path)`."""
        return timeline_of_call(self.plan, self.in_force.planned)

    @property
    def planned_graphs(self) -> tuple[PlannedGraph, ...]:
        """Every planned graph, in the order in which they run; empty before the first training call."""
        return self.session.in_force.planned if self.session.in_force else ()

    @property
    def history(self) -> tuple[MeasuredStep, ...]:
        """The training steps that were measured last, oldest first: bytes as planned, and as the allocator counts them.

        Empty where nothing can be measured: on a CPU without a C++ compiler, and inside of FSDP2.
        """
        watch = self.session.loop.watch
        return watch.history.kept() if watch is not None else ()

    @property
    def measured_steps(self) -> int:
        """How many training steps were measured, of which `history` has the last ones."""
        watch = self.session.loop.watch
        return watch.history.total if watch is not None else 0

    @property
    def graph_modules(self) -> tuple[tuple[fx.GraphModule, fx.GraphModule], ...]:
        """(forward, backward) of every planned graph, in the order in which they run."""
        call = self.session.in_force
        compiled = [graph.compiled.get(call.key) for graph in call.graphs] if call else []
        return tuple((each.emitted.forward, each.emitted.backward) for each in compiled if each and each.emitted)

    @property
    def graph_module(self) -> fx.GraphModule:
        """The forward GraphModule of the (first) planned graph."""
        self.plan  # noqa: B018  raises where there is none
        return self.graph_modules[0][0]

    def restore(self) -> nn.Module:
        """Make the model what it was before `optimize()`; returns it."""
        self._model._compiled_call_impl = None
        self._model.__dict__.pop("compile", None)
        del self._model.graphopt
        return self._model


#: What a capture asks of sizes that a report shows.
_MOST_CONDITIONS = 4


def _compiled(call: CallPlan) -> CompiledKernels | None:
    """What a report says of kernels that were compiled."""
    kernels = call.kernels
    if kernels is None:
        return None
    planned_bytes = call.peak_bytes - kernels.beside_bytes
    return CompiledKernels(kernels.rounds, kernels.compile_seconds, planned_bytes, call.peak_bytes)


def _size_conditions(session: Session) -> tuple[str, ...]:
    """What must hold of sizes for the graphs in force, or why none of them may change."""
    call = session.in_force
    found = [condition for graph in call.graphs for condition in graph.symbols.conditions] if call else []
    if len(found) > _MOST_CONDITIONS:
        found[_MOST_CONDITIONS:] = [f"{len(found) - _MOST_CONDITIONS} more conditions, which the log has"]
    if obstacle := session.sizes.obstacle:
        found.append(f"each shape is captured by itself: {obstacle}")
    return tuple(dict.fromkeys(found))


def _nothing() -> None:
    return None
