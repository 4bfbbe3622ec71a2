"""TrainStep: one optimizer step on one global batch, as one graph inside a number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from graphopt.base.errors import UsageError
from graphopt.base.interrupts import whole_once_begun
from graphopt.capture.changing_sizes import Sizes
from graphopt.device.snapshot import generators_kept, undone
from graphopt.device.storages import local_of, tensors_in
from graphopt.emit.direct import direct
from graphopt.graph.roles import (
    DESCRIPTOR,
    First,
    Given,
    Master,
    OptimizerOption,
    OptimizerState,
    Scaling,
    SummedGradient,
    Weight,
    returned_gradients,
)
from graphopt.kernels.choice import chosen
from graphopt.kernels.sharding.ops import forget_what_is_on_the_way
from graphopt.passes.run_passes import run_passes
from graphopt.passes.window import window_passes
from graphopt.passes.window.update import GroupUpdate
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.problem.plan import Plan
from graphopt.report.build import build_report
from graphopt.report.data import Report
from graphopt.report.traces.from_plans import timeline_of_step
from graphopt.report.traces.timeline import Timeline
from graphopt.report.traces.torch_trace import log_to_torch_trace
from graphopt.run.graphs.met_graph import MOST_GRAPHS
from graphopt.run.model.loss_module import LossModule
from graphopt.run.watch.causes import IN_GRAPHS
from graphopt.run.watch.measured_step import MeasuredStep, taken_steps, trained_steps
from graphopt.step.memory import StepMemory
from graphopt.step.micro_batches.division import Division
from graphopt.step.micro_batches.hand_over import HandingOver
from graphopt.step.micro_batches.micro_graph import Micro, MicroCall
from graphopt.step.micro_batches.plan_micros import plan_micros
from graphopt.step.micro_batches.window import MicroBatch, as_shares, weight_of
from graphopt.step.micro_batches.window_graph import build_window, given_tensors, window_key
from graphopt.step.optimizer.backward_updates import BackwardUpdates
from graphopt.step.optimizer.gradient_sums import SummedGradients
from graphopt.step.options import StepOptions, StepResult, nothing_learned
from graphopt.step.ranks.exchange import Exchange
from graphopt.step.ranks.failure import naming_absence, naming_failures
from graphopt.step.ranks.lockstep import Lockstep
from graphopt.step.ranks.sent import sent
from graphopt.step.ranks.settings import OptimizerSettings, Settings, spelled_options
from graphopt.step.ranks.start import raising_together
from graphopt.step.scale_state import ScaleState
from graphopt.step.sharding.share_out import Shared
from graphopt.step.step_figures import step_figures
from graphopt.step.step_state import StepState
from graphopt.step.step_watch import StepWatch


class TrainStep:
    """What `graphopt.train_step()` returns: call it with a global batch."""

    def __init__(
        self,
        model: nn.Module,
        module: LossModule,
        memory: StepMemory,
        options: StepOptions,
        in_backward: BackwardUpdates,
        sizes: Sizes,
        scheduler: Any = None,
        exchange: Exchange | None = None,
        sharded: Shared | None = None,
    ) -> None:
        self.model, self.optimizer = model, memory.view.optimizer
        self._view, self._memory, self._options, self._scheduler = memory.view, memory, options, scheduler
        self._scale = ScaleState(options.loss_scale, memory.device)
        self._exchange, self._sharded, self._in_backward = exchange, sharded, in_backward
        self._autocast, self._state = module.autocast, StepState(self._scale, self._view, exchange, sharded)
        scattering, parallel = (exchange.shared, exchange.parallel) if exchange else (None, None)
        self._parts = sharded if sharded is not None else parallel
        handing_over = HandingOver(memory.view, options, in_backward, exchange, scattering)
        self.division = Division(
            module,
            memory,
            lambda is_last: handing_over.of(is_last=is_last, summed=memory.summed),
            options.accumulate,
            options.weights,
            sizes,
            always_summed=exchange is not None and exchange.summing is not None and scattering is None,
            around_capture=sharded.as_captured if sharded else nullcontext,
        )
        self._watch = StepWatch(memory, options.on_excess, self._forget_plans, is_alone=exchange is None)
        self._lockstep: Lockstep | None = None
        if exchange is not None:
            tells = self.division, self._watch, self._settings, self._heed_changes
            self._lockstep = Lockstep(exchange, *tells, is_sharded=scattering is not None)
        self._optimizer_settings = OptimizerSettings(memory.view, sharded.shapes if sharded else {})
        #: Each as a graph and as it is called; the least recently used first.
        self._windows: dict[object, tuple[fx.GraphModule, Callable[..., Any]]] = {}
        self._sums, memory.held = SummedGradients(memory.view), self._held
        self._last: fx.GraphModule | None = None
        self._last_micros: tuple[Micro, ...] = ()

    def __repr__(self) -> str:
        name = type(self.model).__name__
        return f"<TrainStep of {name}: {self.plan!r}>" if self.planned_graphs else f"<TrainStep of {name}: no plan yet>"

    def _repr_html_(self) -> str | None:
        return self.report._repr_html_() if self.planned_graphs else None

    def __call__(self, *args: Any, **kwargs: Any) -> StepResult:
        """One optimizer step on one global batch: `loss_fn(model(*args[:-1], **kwargs), args[-1])`.

        With several processes each gives its part of the global batch, and all of them call.
        """
        with naming_failures(self._exchange.ranks if self._exchange else None):
            return self._step(args, kwargs)

    def _step(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> StepResult:
        if self._sharded is not None:
            self._sharded.check_in_parts()
        pieces, calls = self._prepared(args, kwargs)
        if not pieces:
            return nothing_learned(self._memory.device, self.loss_scale)
        groups = self._view.groups()
        window = self._window(calls, groups)
        batch = tensors_in((args, kwargs))
        result = self._watch.measured(batch, self._last_micros, lambda: self._run(window, calls, pieces, groups))
        is_strict = self._options.on_excess == "raise"
        with raising_together(self._exchange.ranks if self._exchange and is_strict else None):
            self._watch.raises()
        return result

    def _run(
        self, window: Callable[..., Any], calls: list[MicroCall], pieces: list[MicroBatch], groups: list[GroupUpdate]
    ) -> StepResult:
        feeds = self._feeds(self.graph_module, calls, pieces)
        forget_what_is_on_the_way()
        used_scale = self._scale.value.clone() if self._scale.value is not None else 1.0
        whole = nullcontext() if self._view.elsewhere is None else whole_once_begun()
        with torch.no_grad(), torch._C._DisableAutocast(), whole:
            loss, norm, found_inf, gradients = window(feeds)
        result = StepResult(loss, norm, found_inf, used_scale)
        if self._exchange:
            self._exchange.steps += 1
        self._finish(result, groups, gradients)
        return result

    def plan_for(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Capture and plan for this batch; nothing is computed, and what the model does in Python is undone."""
        with undone(self.model, (args, kwargs)):
            with naming_absence(self._exchange.ranks if self._exchange else None, "train_step()"):
                _, calls = self._prepared(args, kwargs)
            if calls:
                self._window(calls, self._view.groups())

    def _prepared(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[MicroBatch], list[MicroCall]]:
        if self._lockstep:
            return self._lockstep.prepare(args, kwargs)
        self._heed_changes()
        if self._watch.is_due:
            self._watch.corrects()
        pieces = self.division.cut(args, kwargs)
        calls = [self.division.resolve(piece) for piece in pieces]
        how = self._memory, self._watch, self._forget_plans, self._in_backward.help, self.division.goes_by_shape
        if not plan_micros([call.micro for call in calls], *how):
            return self._prepared(args, kwargs)
        return as_shares(pieces, weight_of(pieces)), calls

    def _heed_changes(self) -> None:
        """What the user changed since the last step is heeded, or raises UsageError."""
        if self._sharded is not None:
            self._sharded.follow(self.optimizer)
        if self._view.heeds_changes(may_grow=self._exchange is None):
            self.division.forget_graphs()
            self._watch.forget_model()
            self._windows.clear()
            self._sums.clear()
            self._last, self._last_micros = None, ()
        self._in_backward.check()

    def _forget_plans(self) -> None:
        """There is another room: what is captured stays."""
        self.division.forget_plans()
        self._windows.clear()

    def _settings(self) -> Settings:
        """What all ranks must have alike."""
        assert self._exchange is not None
        return {
            **self._optimizer_settings.now(),
            **spelled_options(self._options),
            "autocast": repr(self._autocast),
            "shard": self._parts.spelled if self._parts else "False",
            "kernels": chosen(),
            "the state that the loss scale started from": repr(self._scale.started_from),
            "the number of steps taken": str(self._exchange.steps),
        }

    def whole_model(self) -> AbstractContextManager[nn.Module]:
        """Inside, a model whose parameters are sharded has them whole, on all ranks, which must all come here.

        To evaluate it, to save it, or to write its parameters: at the end each rank keeps its rows of them.
        """
        return self._sharded.whole() if self._sharded else nullcontext(self.model)

    def unshard(self) -> nn.Module:
        """Make a sharded model and its optimizer's state whole, for good; a collective call. This step is over then."""
        if self._sharded is not None:
            self._sharded.unshard(self.optimizer)
        return self.model

    @property
    def micro_batch_size(self) -> int:
        """Rows of a micro-batch; 0 before the first batch is known."""
        return self.division.micro_rows

    @property
    def accumulators(self) -> tuple[torch.Tensor, ...]:
        """Where gradients are summed up, in float32; empty without accumulation."""
        return self._sums.tensors

    @property
    def loss_scale(self) -> float:
        """The scale that the next step uses."""
        return float(self._scale.value) if self._scale.value is not None else 1.0

    @property
    def history(self) -> tuple[MeasuredStep, ...]:
        """The steps that were measured last, oldest first; empty on a CPU without a C++ compiler."""
        return self._watch.history.kept()

    @property
    def measured_steps(self) -> int:
        """How many steps were measured, of which `history` has the last ones."""
        return self._watch.history.total

    @property
    def plan(self) -> Plan:
        """The plan in force; raises UsageError before the first batch."""
        return self._memory.build_plan(type(self.model).__name__)

    @property
    def planned_graphs(self) -> tuple[PlannedGraph, ...]:
        """The planned graphs of its micro-batches; empty before the first batch."""
        return tuple(micro.planned for micro in self._memory.shown())

    @property
    def report(self) -> Report:
        """The report of the plan in force, for the last batch; `print` it."""
        report = build_report(self.plan, self.planned_graphs, self._memory.plan_seconds, run_together=False)
        sends = sent(self._last_micros, self._exchange, self._sharded, self._options.compress)
        ways, scratch = (*self._in_backward.ways, *self._view.ways), self._watch.found_scratch
        figures = step_figures(self._last_micros, self.division.micro_rows, self._memory, sends, ways)
        trained = trained_steps(self.history, self._memory.budget_bytes - self._memory.reserve_bytes)
        return replace(report, step=figures, trained=trained, history=taken_steps(self.history), scratch=scratch)

    @property
    def timeline(self) -> Timeline:
        """The micro-batch with the highest peak, op by op, and the update: `timeline.save_trace(path)`, and others."""
        plan, highest = self.plan, self._memory.highest()
        return timeline_of_step(plan, highest.planned, IN_GRAPHS, highest.tail_bytes)

    @property
    def graph_module(self) -> fx.GraphModule:
        """The graph of the last window: micro-batches, gradient work and update."""
        if self._last is None:
            raise UsageError("nothing is captured yet: call the step, or give train_step() example_inputs")
        return self._last

    def state_dict(self) -> dict[str, Any]:
        """The loss scale, float32 masters, and what compression keeps, which is each rank's own."""
        return self._state.given()

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Go on from `state_dict()`, or, with another number of processes, from the list of all ranks' of then.

        Raises UsageError where it is another step's.
        """
        self._state.taken(state)

    def _window(self, calls: Sequence[MicroCall], groups: list[GroupUpdate]) -> Callable[..., Any]:
        key = (*window_key(calls, self._view.names), tuple(groups))
        is_new = key not in self._windows
        if is_new:
            view, options = self._view, self._options
            names = {id(local_of(t)): n for n, t in (*self.model.named_buffers(), *self.model.named_parameters())}
            with generators_kept():
                ranks, commits = (e.summing_name, e.commits) if (e := self._exchange) else (None, False)
                window = build_window(calls, view.names, names, ranks, commits=commits)
                rows = self._parts.in_window if self._parts else None
                run_passes(window, window_passes(groups, options.clip, options.loss_scale, rows))
                self._windows[key] = window, direct(window, self._watch.runs_graph)
            if len(self._windows) > MOST_GRAPHS:
                del self._windows[next(iter(self._windows))]
        self._windows[key] = self._windows.pop(key)
        (self._last, run), self._last_micros = self._windows[key], tuple(call.micro for call in calls)
        if is_new:
            log_to_torch_trace(lambda: self.report, lambda: self.timeline)
        return run

    def _feeds(self, window: fx.GraphModule, calls: Sequence[MicroCall], pieces: Sequence[MicroBatch]) -> list[Any]:
        given, view = given_tensors(calls), self._view
        source: dict[type, Callable[[Any], Any]] = {
            Given: lambda role: given[role.number],
            Weight: lambda role: pieces[role.number].weight,
            OptimizerOption: lambda role: view.option(role.group, role.key),
            OptimizerState: lambda role: view.state(role.parameter, role.key),
            First: lambda role: view.is_first(role.parameter),
            Master: lambda role: view.master(role.parameter),
            Scaling: lambda role: self._scale.tensor(role.key),
            **(self._exchange.sources(self._memory.device) if self._exchange else {}),
        }
        feeds = []
        for node in window.graph.find_nodes(op="placeholder"):
            role = node.meta[DESCRIPTOR]
            is_sum = isinstance(role, SummedGradient)
            feeds.append(self._sums.of(role.parameter, node.meta["val"]) if is_sum else source[type(role)](role))
        return feeds

    def _held(self) -> list[torch.Tensor]:
        """Tensors of our own that stay between steps, and are counted by name."""
        return [*self._sums.tensors, *(self._exchange.tensors if self._exchange else ())]

    def _finish(self, result: StepResult, groups: list[GroupUpdate], gradients: list[torch.Tensor]) -> None:
        """What is left to the host: an optimizer of its own, state that is new, the scheduler."""
        by_optimizer = any(group.kind == "step" for group in groups)
        waits = by_optimizer or self._view.unpublished or self._scheduler is not None
        if waits and result.skipped:
            return
        if by_optimizer:
            self._view.step(gradients, names := returned_gradients(self.graph_module.graph))
            if self._sharded is not None:
                self._sharded.share(names)
        self._view.publish()
        # what torch's schedulers look at to know that the optimizer stepped before they do
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        if self._scheduler is not None:
            self._scheduler.step()
