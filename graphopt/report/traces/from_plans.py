"""Planned graphs -> Timeline: the simulator's bytes at each step, the spans behind them, and the plan's seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphopt.graph.step_graph import OpInfo
from graphopt.plan.offload.lanes import Lanes, run_lanes
from graphopt.plan.planned_graph import PlannedGraph
from graphopt.plan.shares import Turn, turns
from graphopt.problem.plan import Plan
from graphopt.problem.schedule import lifetimes, runs_again, simulate
from graphopt.report.traces.timeline import HeldSpan, MovedSpan, OpRun, Timeline


@dataclass(frozen=True)
class _Stretch:
    """A turn laid out: `steps` of the graph's schedule, the first of which is run number `run` and begins then."""

    turn: Turn
    steps: range
    run: int
    begin_seconds: float


def timeline_of_call(plan: Plan, planned: Sequence[PlannedGraph]) -> Timeline:
    """A call whose graphs run in this order, one may come twice: forwards, and backwards in reverse."""
    lanes = [_lanes(each) for each in planned]
    stretches = list(_laid_out(planned, lanes))
    base_bytes = sum(plan.resident_bytes.values())
    runs: list[OpRun] = []
    moved: list[MovedSpan] = []
    for stretch in stretches:
        each, own_lanes = planned[stretch.turn.place], lanes[stretch.turn.place]
        runs += _runs(each, own_lanes, stretch, base_bytes + stretch.turn.held_bytes)
        moved += _moved(each, own_lanes, stretch)
    held: list[HeldSpan] = []
    for place, each in enumerate(planned):
        both = _BothTurns(*(stretch for stretch in stretches if stretch.turn.place == place))
        held += (*_values(each, both, len(runs) - 1), *_workspaces(each, both))
    seconds = sum(each.seconds for each in lanes)
    return Timeline(
        plan.model,
        plan.device,
        plan.budget_bytes,
        seconds,
        dict(plan.resident_bytes),
        tuple(runs),
        tuple(span for span in held if span.bytes),
        tuple(moved),
    )


def timeline_of_step(plan: Plan, planned: PlannedGraph, in_graphs: str, tail_bytes: Mapping[str, int]) -> Timeline:
    """A training step with one micro-batch, whose graph this is, and the optimizer's update behind it.

    The kind `in_graphs` of the plan's resident bytes is there only until then, and `tail_bytes` only then.
    """
    call = timeline_of_call(plan, [planned])
    resident = dict(plan.resident_bytes)
    until_then = {in_graphs: resident.pop(in_graphs)} if in_graphs in resident else {}
    last = len(call.runs) - 1
    live_bytes = sum(resident.values()) + sum(tail_bytes.values())
    update = OpRun("the optimizer's update", "", "update", "computed", "", "", call.seconds, 0.0, live_bytes)
    held = [*call.held, *(HeldSpan(kind, kind, size, 0, last) for kind, size in until_then.items())]
    held += [HeldSpan(kind, kind, size, last + 1, last + 1) for kind, size in tail_bytes.items()]
    spans = tuple(span for span in held if span.bytes)
    return replace(call, resident_bytes=resident, runs=(*call.runs, update), held=spans)


def _lanes(planned: PlannedGraph) -> Lanes:
    """When each step begins: what was planned, as the simulator's lanes have it."""
    captured, schedule = planned.captured, planned.schedule
    if captured.moved:
        offload = planned.choice.offload
        assert offload is not None, "a plan that moves values has a link to move them over"
        return run_lanes(captured.step, captured.problem, schedule, offload.link)
    ends = np.cumsum([captured.problem.ops[op].seconds for op in schedule]).tolist()
    return Lanes(ends[-1], 0.0, (0.0, *ends[:-1]), {}, ())


def _laid_out(planned: Sequence[PlannedGraph], lanes: Sequence[Lanes]) -> Iterator[_Stretch]:
    """The turns of a call; the step between forward and backward ends the one and begins the other."""
    studies, schedules = [each.study for each in planned], [each.schedule for each in planned]
    run, seconds = 0, 0.0
    before: Turn | None = None
    for turn in turns(studies, schedules):
        boundary = schedules[turn.place].index(planned[turn.place].captured.step.boundary)
        steps = range(boundary, len(schedules[turn.place])) if turn.is_backward else range(boundary + 1)
        if before is not None and before.place == turn.place:  # nothing runs between the two
            steps = steps[1:]
        yield _Stretch(turn, steps, run, seconds)
        own = lanes[turn.place]
        end_seconds = own.begins[steps.stop] if steps.stop < len(own.begins) else own.seconds
        run, before = run + len(steps), turn
        seconds += end_seconds - (own.begins[steps.start] if len(steps) else end_seconds)


def _runs(planned: PlannedGraph, lanes: Lanes, stretch: _Stretch, beside_bytes: int) -> Iterator[OpRun]:
    step, problem, schedule = planned.captured.step, planned.captured.problem, planned.schedule
    live_bytes = planned.study.simulated(schedule).live_bytes
    again = runs_again(schedule)
    for place in stretch.steps:
        op = step.ops[schedule[place]]
        how = "moved" if op.transfer is not None else "recomputed" if again[place] else "computed"
        yield OpRun(
            name=op.name,
            graph=planned.captured.name,
            phase="backward" if stretch.turn.is_backward else "forward",
            how=how,
            module_path=op.module_path,
            source=op.source,
            begin_seconds=stretch.begin_seconds + lanes.begins[place] - lanes.begins[stretch.steps.start],
            seconds=problem.ops[schedule[place]].seconds if how != "moved" else 0.0,
            live_bytes=beside_bytes + int(live_bytes[place]),
        )


def _moved(planned: PlannedGraph, lanes: Lanes, stretch: _Stretch) -> Iterator[MovedSpan]:
    """The transfers that begin in this turn; one may end behind it."""
    ops, steps = planned.captured.step.ops, stretch.steps
    least = lanes.begins[steps.start] if stretch.turn.is_backward else 0.0
    most = lanes.begins[steps.stop] if steps.stop < len(lanes.begins) else float("inf")
    for each in lanes.transfers:
        if least <= each.begin_seconds < most:
            begin_seconds = stretch.begin_seconds + each.begin_seconds - lanes.begins[steps.start]
            yield MovedSpan(ops[each.op].name, each.is_fetch, each.bytes, begin_seconds, each.seconds)


@dataclass(frozen=True)
class _BothTurns:
    """A graph's forward and backward; the step between them may be in both."""

    forward: _Stretch
    backward: _Stretch

    def runs_of(self, first: int, last: int) -> tuple[int, int]:
        """The first and the last run of what is there from one place of the schedule to another."""
        begin = self.forward if first in self.forward.steps else self.backward
        end = self.backward if last in self.backward.steps else self.forward
        return begin.run + first - begin.steps.start, end.run + last - end.steps.start


def _values(planned: PlannedGraph, both: _BothTurns, last_run: int) -> Iterator[HeldSpan]:
    """The graph's values, each from the op that makes it to the last that reads it; what it returns stays."""
    step, problem, schedule = planned.captured.step, planned.captured.problem, planned.schedule
    kept_bytes, outputs, end = both.backward.turn.kept_bytes, set(problem.outputs), len(schedule) - 1
    again = runs_again(schedule)
    for value, first, last in lifetimes(problem, schedule):
        info, op, size_bytes = step.values[value], step.ops[schedule[first]], problem.values[value].bytes
        first_run, final_run = both.runs_of(first, last)
        if kept_bytes and last == end and value in outputs:
            kept_bytes -= size_bytes
            final_run = last_run
        kind = _kind_of(info.kind, op, again=again[first])
        label = f"{'x'.join(map(str, info.shape)) or 'scalar'} {info.dtype.removeprefix('torch.')}"
        yield HeldSpan(info.name, kind, size_bytes, first_run, final_run, label, op.module_path, op.source)
    _, own_end = both.runs_of(0, end)
    if own_end < last_run:  # an output that is resident is counted again where it is returned
        yield HeldSpan("outputs that are inputs", "outputs", kept_bytes, own_end + 1, last_run)


def _workspaces(planned: PlannedGraph, both: _BothTurns) -> Iterator[HeldSpan]:
    """What the graph's ops need beside their values, and the generator states that recomputed random ops keep."""
    step, problem, schedule = planned.captured.step, planned.captured.problem, planned.schedule
    for place, number in enumerate(schedule):
        op, size_bytes = step.ops[number], problem.ops[number].workspace_bytes
        span = both.runs_of(place, place)
        yield HeldSpan(op.name, "workspace", size_bytes, *span, module_path=op.module_path, source=op.source)
    states = planned.study.simulated(schedule).live_bytes - simulate(problem, schedule).live_bytes
    kept_bytes = int(states.min())
    yield HeldSpan("generator states", "generator states", kept_bytes, *both.runs_of(0, len(schedule) - 1))
    for place in np.flatnonzero(states > kept_bytes).tolist():
        beside_bytes = int(states[place]) - kept_bytes
        yield HeldSpan("generator state", "generator states", beside_bytes, *both.runs_of(place, place))


def _kind_of(kind: str, maker: OpInfo, *, again: bool) -> str:
    """The kind of a value as it is shown: apart where its maker ran before, and made or fetched it `again`."""
    if not again or kind != "activations":
        return kind
    return "recomputed" if maker.transfer is None else "fetched"
